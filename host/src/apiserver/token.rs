//! A bearer token in a file that is written anew from time to time.
//!
//! Invariant: `a_token_file_is_read_again_and_its_last_good_content_counts`.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use http::HeaderValue;
use parking_lot::Mutex;

use crate::clock;

/// How old what was read may be, as client-go has it.
const READ_EVERY: Duration = Duration::from_secs(50);

pub(super) struct TokenFile {
    path: PathBuf,
    /// What was read last, and when it was tried.
    read: Mutex<(HeaderValue, Instant)>,
}

/// Its content is a secret.
impl fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl TokenFile {
    /// Reads it; `inline` serves if that fails.
    pub(super) fn open(path: PathBuf, inline: Option<String>) -> Result<Self, String> {
        let header = header(&path).or_else(|error| {
            let wrong = format!("cannot read the token in {}: {error}", path.display());
            inline.and_then(|token| bearer(&token)).ok_or(wrong)
        })?;
        Ok(Self { path, read: Mutex::new((header, clock::now())) })
    }

    /// The header for a request now.
    pub(super) fn header(&self) -> HeaderValue {
        self.header_at(clock::now())
    }

    fn header_at(&self, now: Instant) -> HeaderValue {
        let mut read = self.read.lock();
        if now.saturating_duration_since(read.1) >= READ_EVERY {
            read.1 = now;
            match header(&self.path) {
                Ok(header) => read.0 = header,
                Err(error) => tracing::warn!(
                    file = %self.path.display(),
                    %error,
                    "the file of the token cannot be read again, its last content serves"
                ),
            }
        }
        read.0.clone()
    }
}

fn header(path: &Path) -> io::Result<HeaderValue> {
    let text = fs::read_to_string(path)?;
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "it holds no token");
    bearer(text.trim()).ok_or_else(wrong)
}

fn bearer(token: &str) -> Option<HeaderValue> {
    if token.is_empty() {
        return None;
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_is_read_again_and_its_last_good_content_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "one\n").unwrap();
        let file = TokenFile::open(path.clone(), Some("inline".into())).unwrap();
        let start = clock::now();
        let at = |seconds| file.header_at(start + Duration::from_secs(seconds));
        assert_eq!(at(0), "Bearer one");
        fs::write(&path, "  two \r\n").unwrap();
        assert_eq!(at(10), "Bearer one", "not at each request");
        assert_eq!(at(61), "Bearer two");
        for bad in ["", "\n", "th\nree"] {
            fs::write(&path, bad).unwrap();
            assert_eq!(at(200), "Bearer two", "{bad:?}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(at(300), "Bearer two");
        assert!(!format!("{file:?}").contains("two"));
        let inline = TokenFile::open(path.clone(), Some("inline".into())).unwrap();
        assert_eq!(inline.header(), "Bearer inline");
        let error = TokenFile::open(path, None).unwrap_err();
        assert!(error.contains("token"), "{error}");
    }
}
