//! The content of a component, by its SHA-256.

use std::{fmt, str::FromStr, sync::Arc};

use ring::digest::{SHA256, digest};

/// `sha256:` and 64 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(Arc<str>);

/// What was given is no digest.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a digest: sha256: and 64 lower-case hexadecimal digits")]
pub struct NotADigest(String);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_hash(digest(&SHA256, bytes).as_ref())
    }

    /// The digest that a hash function has come to.
    pub(crate) fn from_hash(hash: &[u8]) -> Self {
        Self(format!("sha256:{}", hex::encode(hash)).into())
    }

    /// The hex digits alone.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// The first twelve digits, for people and for logs.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let digits = text.strip_prefix("sha256:").unwrap_or_default();
        let good = digits.len() == 64
            && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if good { Ok(Self(text.into())) } else { Err(NotADigest(text.to_owned())) }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_digest_is_refused() {
        for bad in ["", "sha256:", "sha256:../../etc/passwd", "sha256:ABCD", "md5:00"] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        let digest = Digest::of(b"hello");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
    }
}
