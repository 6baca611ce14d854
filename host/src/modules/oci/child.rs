//! The child that speaks with a registry: one question, one answer.

use std::{process::ExitCode, time::Duration};

use futures::TryStreamExt;
use oci_client::{
    Client, Reference,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::{DigestError, OciDistributionError as Error, OciErrorCode},
    manifest::OciDescriptor,
    secrets::RegistryAuth,
};
use serde::{Deserialize, Serialize};

use super::{layout::MANIFESTS, login::Login, referrers::Asking};
use crate::{
    causes,
    child::{self, Limits},
};

/// Exit codes: what the registry has does not do, the login does not, it may pass, the answer is too large, or another one than
/// was asked for.
pub(super) const REFUSED: i32 = 3;
pub(super) const UNAUTHORIZED: i32 = 4;
pub(super) const UNREACHABLE: i32 = 5;
pub(super) const TOO_LARGE: i32 = 6;
pub(super) const TAMPERED: i32 = 7;

/// How long a connection may take to be made, and how long nothing may come.
const CONNECT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(20);

/// What the child is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) image: String,
    pub(super) login: Option<Login>,
    pub(super) want: Want,
    /// Bytes of the answer.
    pub(super) limit: u64,
    pub(super) plain_http: bool,
    pub(super) ca: Option<String>,
    pub(super) proxy: Option<String>,
    pub(super) no_proxy: Option<String>,
}

/// What it is to bring.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Want {
    Manifest,
    Layer { digest: String },
    Proof,
}

/// The child: a job from standard input, its answer to standard output.
pub fn child_main(limits: Limits) -> ExitCode {
    child::main(limits, |input| {
        let wrong = |error: String| (1, error);
        let job: Job = serde_json::from_slice(&input).map_err(|error| wrong(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| wrong(error.to_string()))?;
        runtime
            .block_on(done(job))
            .map_err(|(code, words)| (u8::try_from(code).unwrap_or(1), words))
    })
}

async fn done(job: Job) -> Result<Vec<u8>, (i32, String)> {
    let refused = |words: String| (REFUSED, words);
    let image: Reference = job.image.parse().map_err(|_| refused("it is no image".to_owned()))?;
    let auth = job
        .login
        .map_or(RegistryAuth::Anonymous, |login| RegistryAuth::Basic(login.name, login.password));
    let protocol = if job.plain_http { ClientProtocol::Http } else { ClientProtocol::Https };
    let extra_root_certificates = job
        .ca
        .map(|pem| Certificate { encoding: CertificateEncoding::Pem, data: pem.into_bytes() });
    let client = Client::try_from(ClientConfig {
        protocol,
        extra_root_certificates: extra_root_certificates.into_iter().collect(),
        platform_resolver: None,
        connect_timeout: Some(CONNECT),
        read_timeout: Some(SILENCE),
        user_agent: concat!("nagaya/", env!("CARGO_PKG_VERSION")),
        https_proxy: job.proxy.clone(),
        no_proxy: job.no_proxy,
        ..ClientConfig::default()
    });
    let client = client.map_err(|error| judge(&error))?;
    match job.want {
        Want::Manifest => {
            let pulled = client.pull_manifest_raw(&image, &auth, &MANIFESTS).await;
            pulled.map(|(body, _)| body.to_vec()).map_err(|error| judge(&error))
        }
        Want::Proof => {
            let asking = Asking { client: &client, image: &image, auth: &auth };
            let proof = asking.proof().await?;
            serde_json::to_vec(&proof).map_err(|error| refused(error.to_string()))
        }
        Want::Layer { digest } => {
            client.store_auth_if_needed(image.resolve_registry(), &auth).await;
            let layer = OciDescriptor { digest, ..OciDescriptor::default() };
            let pulled = client.pull_blob_stream(&image, &layer).await;
            let mut stream = pulled.map_err(|error| judge(&error))?.stream;
            let mut bytes = vec![];
            while let Some(part) = stream.try_next().await.map_err(|error| broken(&error))? {
                if (bytes.len() + part.len()) as u64 > job.limit {
                    return Err((TOO_LARGE, String::new()));
                }
                bytes.extend_from_slice(&part);
            }
            Ok(bytes)
        }
    }
}

/// What it means that a blob has broken off.
pub(super) fn broken(error: &std::io::Error) -> (i32, String) {
    let is_other =
        error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<DigestError>);
    (if is_other { TAMPERED } else { UNREACHABLE }, causes::all(error))
}

/// What an error means for whoever waits for the image.
pub(super) fn judge(error: &Error) -> (i32, String) {
    let code = match error {
        Error::UnauthorizedError { .. }
        | Error::AuthenticationFailure(_)
        | Error::ServerError { code: 401 | 403, .. } => UNAUTHORIZED,
        Error::RegistryError { envelope, .. } => {
            let is = |wanted: &[OciErrorCode]| {
                envelope.errors.iter().any(|error| wanted.contains(&error.code))
            };
            if is(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]) {
                UNAUTHORIZED
            } else if is(&[OciErrorCode::Toomanyrequests]) {
                UNREACHABLE
            } else {
                REFUSED
            }
        }
        Error::DigestError(_) => TAMPERED,
        Error::ServerError { code: 429 | 500.., .. }
        | Error::RequestError(_)
        | Error::IoError(_) => UNREACHABLE,
        _ => REFUSED,
    };
    (code, causes::all(error))
}
