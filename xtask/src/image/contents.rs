//! What is in the image: the host, and the little that a program expects of a system.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};

use super::arch::Arch;
use super::binary::{Binary, libraries};
use super::tree::Tree;

/// Nobody: whom `runAsNonRoot` takes, by a number that other images without a system use too.
pub(super) const USER: u64 = 65532;

/// Where the host keeps modules, unless it is told otherwise.
pub(super) const DATA: &str = "/var/lib/nagaya";

const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\n\
    nonroot:x:65532:65532:nonroot:/var/lib/nagaya:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnonroot:x:65532:\n";

/// Without it glibc asks DNS before it looks into /etc/hosts, which Kubernetes writes.
const NSSWITCH: &str = "hosts: files dns\n";

/// All but the host; it stays the same from version to version, and so does its layer.
pub(super) fn base() -> Result<Tree> {
    let mut files = Tree::default();
    files.file("/etc/passwd", 0o644, PASSWD);
    files.file("/etc/group", 0o644, GROUP);
    files.file("/etc/nsswitch.conf", 0o644, NSSWITCH);
    files.file("/etc/ssl/certs/ca-certificates.crt", 0o644, certificates()?);
    files.folder("/tmp", 0o1777, USER);
    files.folder(DATA, 0o700, USER);
    Ok(files)
}

/// The host as `/nagaya`, with its shared libraries if it needs some.
pub(super) fn host(program: &Path, arch: Arch) -> Result<Tree> {
    let read =
        |file: &Path| std::fs::read(file).with_context(|| format!("reading {}", file.display()));
    let content = read(program)?;
    let binary =
        Binary::read(&content).with_context(|| format!("looking at {}", program.display()))?;
    ensure!(binary.arch == arch, "{} is for {}", program.display(), binary.arch.name());
    let mut files = Tree::default();
    files.file("/nagaya", 0o755, content);
    let libraries = if binary.dynamic { libraries(program)? } else { vec![] };
    for library in libraries {
        let path = library.to_str().context("a library's path is no text")?;
        files.file(path, 0o755, read(&library)?);
    }
    Ok(files)
}

/// The authorities that Mozilla trusts for servers: those of a package that `Cargo.lock` pins, not those of the machine
/// that packs.
fn certificates() -> Result<String> {
    let mut pem = "# Mozilla's list, from the package webpki-root-certs (CDLA-Permissive-2.0, https://cdla.dev/permissive-2-0)\n".to_owned();
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        let text = BASE64_STANDARD.encode(certificate);
        pem += "-----BEGIN CERTIFICATE-----\n";
        for line in text.as_bytes().chunks(64) {
            writeln!(pem, "{}", std::str::from_utf8(line)?)?;
        }
        pem += "-----END CERTIFICATE-----\n";
    }
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authorities_are_those_of_the_package() {
        let pem = certificates().unwrap();
        let mut certificates = 0;
        for block in pem.split("-----BEGIN CERTIFICATE-----\n").skip(1) {
            let (text, _) = block.split_once("-----END CERTIFICATE-----\n").unwrap();
            let der = BASE64_STANDARD.decode(text.replace('\n', "")).unwrap();
            assert_eq!(der, webpki_root_certs::TLS_SERVER_ROOT_CERTS[certificates].as_ref());
            certificates += 1;
        }
        assert!(certificates > 100, "{certificates} authorities");
    }

    #[test]
    fn a_dynamic_host_brings_its_libraries() {
        let program = std::env::current_exe().unwrap();
        let binary = Binary::read(&std::fs::read(&program).unwrap()).unwrap();
        let packed = host(&program, binary.arch).unwrap();
        let paths: Vec<_> = packed.files().collect();
        assert!(paths.contains(&"nagaya"));
        let loader = paths.iter().any(|path| path.contains("ld-"));
        assert_eq!(loader, binary.dynamic, "{paths:?}");
    }
}
