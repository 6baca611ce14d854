//! The host's credentials as files that are rewritten under it, as a pod has them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::control_plane::ControlPlane;
use crate::host;
use crate::proxy::{Authority, Proxy};

/// A kubeconfig through a proxy that names a file for the token and one for the authorities.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    authority: Authority,
}

impl Files {
    /// Writes them to `folder`; the proxy shows a certificate of a new authority, which they name.
    pub async fn write(control_plane: &ControlPlane, proxy: &Proxy, folder: &Path) -> Result<Self> {
        let files = Self { folder: folder.to_owned(), authority: Authority::new()? };
        proxy.show(&files.authority)?;
        files.save("token", &host::token(control_plane).await?)?;
        files.save("ca.crt", &files.authority.pem())?;
        let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "files",
                "cluster": {"server": proxy.url(), "certificate-authority": path("ca.crt")},
            }],
            "users": [{"name": "host", "user": {"tokenFile": path("token")}}],
            "contexts": [{"name": "files", "context": {"cluster": "files", "user": "host"}}],
            "current-context": "files",
        });
        files.save("kubeconfig", &kubeconfig.to_string())?;
        Ok(files)
    }

    /// The kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// The authority that they name.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Writes a new token, and `next` beside the authority that is there.
    pub async fn renew(&self, control_plane: &ControlPlane, next: &Authority) -> Result<()> {
        self.save("ca.crt", &(self.authority.pem() + &next.pem()))?;
        self.save("token", &host::token(control_plane).await?)
    }

    /// Whole or not at all: the host may read at any time.
    fn save(&self, name: &str, text: &str) -> Result<()> {
        let (file, next) = (self.folder.join(name), self.folder.join(format!("{name}.next")));
        let saved = std::fs::write(&next, text).and_then(|()| std::fs::rename(&next, &file));
        saved.with_context(|| format!("writing {}", file.display()))
    }
}
