//! The keys and certificates of one instance: P-256, made in memory in under a millisecond.

use std::path::Path;

use anyhow::{Context, Result};
use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};

/// The name the API server expects of whoever speaks for others (aggregation).
pub(super) const FRONT_PROXY: &str = "front-proxy-client";

/// 10.0.0.1 is the first address of the service range: the `kubernetes` Service.
const SERVER_NAMES: [&str; 7] = [
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "127.0.0.1",
    "10.0.0.1",
];

/// Writes all of them into `folder` and returns the CA that the server's certificate is from.
pub(super) fn write(folder: &Path) -> Result<String> {
    let ca = authority("nagaya-test-ca")?;
    let mut server = CertificateParams::new(SERVER_NAMES.map(str::to_owned))?;
    server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    issue(folder, "apiserver", server, ExtendedKeyUsagePurpose::ServerAuth, &ca)?;

    let front_proxy_ca = authority("nagaya-test-front-proxy-ca")?;
    let mut client = CertificateParams::default();
    client.distinguished_name.push(DnType::CommonName, FRONT_PROXY);
    issue(folder, "front-proxy", client, ExtendedKeyUsagePurpose::ClientAuth, &front_proxy_ca)?;
    save(folder, "front-proxy-ca.crt", &front_proxy_ca.pem())?;

    let service_accounts = KeyPair::generate()?;
    save(folder, "sa.key", &service_accounts.serialize_pem())?;
    save(folder, "sa.pub", &service_accounts.public_key_pem())?;
    save(folder, "ca.crt", &ca.pem())?;
    Ok(ca.pem())
}

fn authority(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    limit(&mut params)?;
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
        .with_context(|| format!("making {name}"))
}

fn issue(
    folder: &Path,
    name: &str,
    mut params: CertificateParams,
    usage: ExtendedKeyUsagePurpose,
    ca: &CertifiedIssuer<'static, KeyPair>,
) -> Result<()> {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    limit(&mut params)?;
    let key = KeyPair::generate()?;
    let certificate =
        params.signed_by(&key, ca).with_context(|| format!("signing the certificate {name}"))?;
    save(folder, &format!("{name}.crt"), &certificate.pem())?;
    save(folder, &format!("{name}.key"), &key.serialize_pem())
}

/// Valid from yesterday for a year: macOS refuses servers whose certificate lasts over 825 days.
fn limit(params: &mut CertificateParams) -> Result<()> {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let midnight = |date: Date| -> Result<_> {
        Ok(date_time_ymd(date.year().into(), date.month().try_into()?, date.day().try_into()?))
    };
    params.not_before = midnight(today.checked_sub(1.day())?)?;
    params.not_after = midnight(today.checked_add(1.year())?)?;
    Ok(())
}

fn save(folder: &Path, name: &str, text: &str) -> Result<()> {
    std::fs::write(folder.join(name), text).with_context(|| format!("writing {name}"))
}
