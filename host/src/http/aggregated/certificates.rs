//! The CA of the host's own API: kept in a Secret that all hosts of a deployment share, renewed long before it ends.
//!
//! From it each host makes a certificate for itself, in memory and for two days: nothing else has to be kept or renewed. The API
//! server trusts what the Secret's `ca.crt` has, which is the CA and the one before it.
//!
//! Invariants: `an_authority_is_renewed_before_it_ends`, `what_a_renewed_authority_signs_is_trusted_with_the_one_before`.

use anyhow::{Context, Result};
use k8s_openapi::{
    ByteString,
    jiff::{SignedDuration, Timestamp, ToSpan, civil::Date, tz::TimeZone},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Years that a CA lasts.
const YEARS: i64 = 10;
/// It is renewed when it has less left.
const RENEWED_BEFORE: SignedDuration = SignedDuration::from_hours(365 * 24);
/// A host's own certificate is made anew so often; it lasts twice as long and a day, for clocks that differ.
pub(super) const LEAF_EVERY: SignedDuration = SignedDuration::from_hours(24);

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
const NAME: &str = "nagaya-api-ca";

/// A CA and its key.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Authority {
    /// What is to be trusted, as PEM: the CA first, then the one before it.
    pub(super) bundle: String,
    key: String,
}

/// What a host shows of itself, as server and as client.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one.
    pub(super) fn make(now: Timestamp) -> Result<Self> {
        let key = KeyPair::generate().context("making the key of a CA")?;
        let mut params = params();
        limit(&mut params, now, |date| date.checked_add(YEARS.years()))?;
        let certificate = params.self_signed(&key).context("making a CA")?;
        Ok(Self { bundle: certificate.pem(), key: key.serialize_pem() })
    }

    /// A new one, and trust in what this one has signed.
    pub(super) fn renew(&self, now: Timestamp) -> Result<Self> {
        let new = Self::make(now)?;
        let before = self.bundle.split_inclusive("-----END CERTIFICATE-----").next();
        let bundle = format!("{}{}\n", new.bundle, before.unwrap_or_default().trim_start());
        Ok(Self { bundle, ..new })
    }

    /// The one in a Secret; `None`: there is none that can be used.
    pub(super) fn read(secret: &Value) -> Option<Self> {
        let text = |key: &str| {
            let bytes: ByteString = serde_json::from_value(secret["data"][key].clone()).ok()?;
            String::from_utf8(bytes.0).ok()
        };
        let authority = Self { bundle: text(CERTIFICATE)?, key: text(KEY)? };
        let usable = KeyPair::from_pem(&authority.key).is_ok() && authority.ends().is_some();
        usable.then_some(authority)
    }

    /// The data of the Secret that has it.
    pub(super) fn data(&self) -> Value {
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        json!({ CERTIFICATE: bytes(&self.bundle), KEY: bytes(&self.key) })
    }

    /// The bundle as the API writes bytes.
    pub(super) fn ca_bundle(&self) -> Value {
        json!(ByteString(self.bundle.as_bytes().to_vec()))
    }

    /// Whether it is time for another.
    pub(super) fn is_old(&self, now: Timestamp) -> bool {
        self.ends().is_none_or(|ends| ends.duration_since(now) < RENEWED_BEFORE)
    }

    fn ends(&self) -> Option<Timestamp> {
        let der = CertificateDer::from_pem_slice(self.bundle.as_bytes()).ok()?;
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
    }

    /// All that is to be trusted.
    pub(super) fn roots(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.bundle.as_bytes()).filter_map(Result::ok).collect()
    }

    /// A certificate for a host that serves as `service`.
    pub(super) fn leaf(&self, service: &str, now: Timestamp) -> Result<Leaf> {
        let ca = KeyPair::from_pem(&self.key).context("reading the CA's key")?;
        let issuer = Issuer::new(params(), ca);
        let key = KeyPair::generate().context("making a key")?;
        let mut params = CertificateParams::new(vec![service.to_owned()])
            .with_context(|| format!("{service} is no name for a certificate"))?;
        params.distinguished_name.push(DnType::CommonName, "nagaya-host");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        limit(&mut params, now, |date| date.checked_add(3.days()))?;
        let certificate = params.signed_by(&key, &issuer).context("signing a certificate")?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok(Leaf { chain: vec![certificate.der().clone()], key: key.into() })
    }
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}

/// Valid from yesterday, as clocks differ, until the midnight that `end` makes of today's.
fn limit(
    params: &mut CertificateParams,
    now: Timestamp,
    end: impl FnOnce(Date) -> Result<Date, k8s_openapi::jiff::Error>,
) -> Result<()> {
    let today = now.to_zoned(TimeZone::UTC).date();
    let midnight = |date: Date| -> Result<_> {
        Ok(date_time_ymd(date.year().into(), date.month().try_into()?, date.day().try_into()?))
    };
    params.not_before = midnight(today.checked_sub(1.day())?)?;
    params.not_after = midnight(end(today)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        pki_types::{ServerName, UnixTime},
    };

    use super::*;

    const SERVICE: &str = "nagaya-api.nagaya-system.svc";

    fn day(number: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + number * 86_400).unwrap()
    }

    fn trusts(roots: Vec<CertificateDer<'static>>, leaf: &Leaf, now: Timestamp) -> bool {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots);
        let verifier = WebPkiServerVerifier::builder(Arc::new(store)).build().unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().unsigned_abs()));
        let name = ServerName::try_from(SERVICE).unwrap();
        verifier.verify_server_cert(&leaf.chain[0], &[], &name, &[], now).is_ok()
    }

    #[test]
    fn an_authority_is_renewed_before_it_ends() {
        let authority = Authority::make(day(0)).unwrap();
        assert!(!authority.is_old(day(0)) && !authority.is_old(day(8 * 365)));
        assert!(authority.is_old(day(9 * 365 + 5)) && authority.is_old(day(20 * 365)));
        let secret = json!({ "data": authority.data() });
        assert_eq!(Authority::read(&secret).as_ref(), Some(&authority));
        for (key, bad) in [("ca.crt", ""), ("ca.crt", "eA=="), ("ca.key", "eA=="), ("ca.key", "!")]
        {
            let mut secret = secret.clone();
            secret["data"][key] = bad.into();
            assert_eq!(Authority::read(&secret), None, "{key} {bad:?}");
        }
        assert_eq!(Authority::read(&json!({ "type": "Opaque" })), None);
    }

    #[test]
    fn what_a_renewed_authority_signs_is_trusted_with_the_one_before() {
        let old = Authority::make(day(0)).unwrap();
        let new = old.renew(day(3_000)).unwrap();
        let newest = new.renew(day(6_000)).unwrap();
        assert_eq!((new.roots().len(), newest.roots().len()), (2, 2));
        let leaf = |authority: &Authority, at| authority.leaf(SERVICE, day(at)).unwrap();
        assert!(trusts(new.roots(), &leaf(&old, 3_000), day(3_001)));
        assert!(trusts(new.roots(), &leaf(&new, 3_000), day(3_001)));
        assert!(!trusts(old.roots(), &leaf(&new, 3_000), day(3_001)));
        assert!(!trusts(newest.roots(), &leaf(&old, 3_000), day(3_001)), "two are enough");
        assert!(!trusts(new.roots(), &leaf(&new, 3_000), day(3_010)), "it has ended");
    }
}
