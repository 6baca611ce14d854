//! Who gets through the door of the host's own API: the API server's front proxy, and the other hosts of the deployment.
//!
//! Nobody else completes a handshake, so what comes through may be believed in what it says of its user.
//!
//! Invariant: `only_the_front_proxy_and_hosts_get_through`.

use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    certificates::{Authority, Leaf},
    front::Front,
};

/// What this host shows and trusts as a server.
pub(super) fn server(front: &Front, authority: &Authority, leaf: &Leaf) -> Result<ServerConfig> {
    let visitors = Visitors {
        front: verifier(front.roots.clone()).context("reading the front proxy's CA")?,
        names: front.names.clone(),
        hosts: verifier(authority.roots()).context("reading the hosts' CA")?,
    };
    ServerConfig::builder()
        .with_client_cert_verifier(Arc::new(visitors))
        .with_single_cert(leaf.chain.clone(), leaf.key.clone_key())
        .context("using the host's own certificate")
}

/// What it shows and trusts as a client of another host.
pub(super) fn client(authority: &Authority, leaf: &Leaf) -> Result<ClientConfig> {
    ClientConfig::builder()
        .with_root_certificates(store(authority.roots()))
        .with_client_auth_cert(leaf.chain.clone(), leaf.key.clone_key())
        .context("using the host's own certificate")
}

fn store(roots: Vec<CertificateDer<'static>>) -> RootCertStore {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots);
    store
}

fn verifier(roots: Vec<CertificateDer<'static>>) -> Result<Arc<dyn ClientCertVerifier>> {
    Ok(WebPkiClientVerifier::builder(Arc::new(store(roots))).build()?)
}

#[derive(Debug)]
struct Visitors {
    front: Arc<dyn ClientCertVerifier>,
    /// Common names of the front proxy; none: any.
    names: Vec<String>,
    hosts: Arc<dyn ClientCertVerifier>,
}

impl Visitors {
    fn knows_name(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
        let mut names =
            certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        self.names.is_empty() || names.any(|name| self.names.iter().any(|known| known == name))
    }
}

impl ClientCertVerifier for Visitors {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A client with several certificates finds out by itself: one hint would hide the other CA.
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.front.verify_client_cert(certificate, between, now) {
            Ok(_) if !self.knows_name(certificate) => Err(Error::General(
                "the certificate is of the front proxy's CA, but of a name that is not allowed"
                    .to_owned(),
            )),
            Ok(verified) => Ok(verified),
            Err(_) => self.hosts.verify_client_cert(certificate, between, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.front.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.front.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.front.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn leaf(common_name: &str, ca: &rcgen::Issuer<'_, rcgen::KeyPair>) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        params.signed_by(&key, ca).unwrap().der().clone()
    }

    #[test]
    fn only_the_front_proxy_and_hosts_get_through() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca = |name: &str| {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let key = rcgen::KeyPair::generate().unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            (rcgen::Issuer::new(params, key), pem)
        };
        let (front_ca, front_pem) = ca("front");
        let (other_ca, _) = ca("front");
        let config = super::super::front::tests::config(&front_pem);
        let front = Front::read(&config).unwrap();
        let authority = Authority::make(Timestamp::now()).unwrap();
        let host = authority.leaf("a.b.svc", Timestamp::now()).unwrap();
        let visitors = |front: &Front| Visitors {
            front: verifier(front.roots.clone()).unwrap(),
            names: front.names.clone(),
            hosts: verifier(authority.roots()).unwrap(),
        };
        let lets = |front: &Front, certificate: &CertificateDer<'_>| {
            visitors(front).verify_client_cert(certificate, &[], UnixTime::now()).is_ok()
        };
        assert!(lets(&front, &leaf("front-proxy-client", &front_ca)));
        assert!(lets(&front, &host.chain[0]));
        assert!(!lets(&front, &leaf("kubelet", &front_ca)), "a name that is not allowed");
        assert!(!lets(&front, &leaf("front-proxy-client", &other_ca)), "another CA of that name");
        let mut any = front;
        any.names.clear();
        assert!(lets(&any, &leaf("kubelet", &front_ca)));
        assert!(server(&any, &authority, &host).is_ok() && client(&authority, &host).is_ok());
    }
}
