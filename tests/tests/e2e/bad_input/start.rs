//! A host, or a person, that the API server does not hear or does not know.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use e2e::cli::Cli;
use e2e::control_plane::kubeconfig_through;
use e2e::host::{self, Host};
use e2e::wait::within;
use e2e::{Test, test};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};

use super::{LIMIT, says, well};

/// What `nagaya` says to this with a kubeconfig of its own.
async fn complaint(test: &Test, kubeconfig: PathBuf, arguments: &[&str]) -> Result<String> {
    let cli = Cli { kubeconfig, host: test.host.api().to_owned() };
    let output = cli.output(arguments).await?;
    ensure!(!output.status.success(), "nagaya {} was obeyed", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_host_waits_for_an_api_server_that_does_not_answer_and_says_so() -> Result<()> {
    test(async |test| {
        let (_, _) = well(test).await?;
        test.host.stop().await?;
        // Bound, so that nobody else gets it, and deaf until it listens.
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let port = socket.local_addr()?.port();
        let url = format!("https://127.0.0.1:{port}");
        let original = test.options().kubeconfig;
        let kubeconfig = kubeconfig_through(&original, &url, test.control_plane.ca_pem())?;
        let options = host::Options { kubeconfig: kubeconfig.clone(), ..test.options() };
        let unready = Host::start_unready(&options).await?;
        let what = "the host says that nobody answers";
        let line = unready.logged(LIMIT, what, |line| line.message().contains("does not answer"));
        let line = line.await?;
        let said = line.to_string();
        println!("{said}");
        says(&said, &["asks again", "Connection refused", &url, "kubeconfig"]);
        assert_eq!((line.level(), unready.probe("/healthz").await?), ("WARN", 200));
        assert_eq!(unready.probe("/readyz").await?, 503);
        let said = complaint(test, kubeconfig, &["get", "-n", &test.namespace]).await?;
        says(&said, &["API server", "Connection refused"]);

        // Then it comes.
        let server = test.control_plane.url().trim_start_matches("https://").to_owned();
        let listener = socket.listen(64)?;
        let forwarding = tokio::spawn(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move {
                    let Ok(mut there) = TcpStream::connect(server).await else { return };
                    // Either side may hang up.
                    let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                });
            }
        });
        within(LIMIT, "the host is ready", async || {
            let status = unready.probe("/readyz").await?;
            ensure!(status == 200, "{status}");
            Ok(())
        })
        .await?;
        test.switch_to(unready);
        test.website("web", "Web").await?;
        test.written("web", "well").await?;
        test.host.stop().await?;
        forwarding.abort();
        test.start_host().await
    })
}

/// The same token as it would be after its time, signed with the server's own key.
fn expired(test: &Test, kubeconfig: PathBuf) -> Result<PathBuf> {
    let kubeconfig: Value = serde_saphyr::from_str(&std::fs::read_to_string(kubeconfig)?)?;
    let token = kubeconfig["users"][0]["user"]["token"].as_str().context("no token")?;
    let parts: Vec<_> = token.split('.').collect();
    let [head, claims, _] = parts.try_into().ok().context("no token of three parts")?;
    let mut claims: Value = serde_json::from_slice(&unbase64(claims)?)?;
    let now = Timestamp::now().as_second();
    claims["iat"] = json!(now - 7_200);
    claims["nbf"] = json!(now - 7_200);
    claims["exp"] = json!(now - 3_600);
    let signed = format!("{head}.{}", base64(claims.to_string().as_bytes())?);
    let pem = std::fs::read_to_string(test.control_plane.folder().join("sa.key"))?;
    let key: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let random = SystemRandom::new();
    let bad = |_| anyhow::anyhow!("no key to sign with");
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &unbase64(&key)?, &random);
    let key = key.ok().context("no key of ours")?;
    let signature = key.sign(&random, signed.as_bytes()).map_err(bad)?;
    let token = format!("{signed}.{}", base64(signature.as_ref())?);
    test.control_plane.kubeconfig_with_token(&format!("expired-{}", test.namespace), &token)
}

#[test]
fn an_expired_kubeconfig_is_named_as_the_cause() -> Result<()> {
    test(async |test| {
        if test.control_plane.is_given() {
            eprintln!("not looked at: an expired token, because the cluster's key is not ours");
            return Ok(());
        }
        let kubeconfig = expired(test, test.options().kubeconfig)?;
        let folder = test.options().folder.join("expired");
        std::fs::create_dir_all(&folder)?;
        let options = host::Options { folder, kubeconfig: kubeconfig.clone(), ..test.options() };
        let error = Host::start(&options).await.err().context("it was let in")?;
        let said = format!("{error:#}");
        println!("{said}");
        says(&said, &["it ended with", "does not let the host in", "kubeconfig", "Unauthorized"]);
        for arguments in [
            ["get", "-n", &test.namespace].as_slice(),
            &["promote", "hostile", "-n", &test.namespace],
        ] {
            let said = complaint(test, kubeconfig.clone(), arguments).await?;
            println!("{said}");
            says(&said, &["kubeconfig's credentials still valid?"]);
        }
        Ok(())
    })
}

/// URL-safe and without padding, as tokens have it.
fn base64(bytes: &[u8]) -> Result<String> {
    let text = serde_json::to_value(ByteString(bytes.to_vec()))?;
    let text = text.as_str().context("no text")?.trim_end_matches('=').to_owned();
    Ok(text.replace('+', "-").replace('/', "_"))
}

/// Either alphabet.
fn unbase64(text: &str) -> Result<Vec<u8>> {
    let mut text = text.replace('-', "+").replace('_', "/");
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    Ok(serde_json::from_value::<ByteString>(json!(text))?.0)
}
