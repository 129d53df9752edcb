//! Flags of the kubelet's interface: those of the kubelet, which win over the fields of `--config`.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, bail};

use crate::agent::kubelet_api::{Pair, Settings};
use crate::agent::kubelet_config::ServerConfig;
use crate::layout::Layout;

#[derive(Debug, clap::Args)]
pub(super) struct Serving {
    /// Address to serve `kubectl logs` and the like on; 0.0.0.0 unless given
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// Port to serve them on; 10250 unless given, not served with 0
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Authorities of its clients' certificates; /etc/kubernetes/pki/ca.crt unless given
    #[arg(long, value_name = "FILE")]
    client_ca_file: Option<PathBuf>,
    /// Certificate to show to clients; one is made unless given
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    tls_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    tls_private_key_file: Option<PathBuf>,
}

impl Serving {
    /// Brings flags and file together; `None` where nothing is to be served.
    pub(super) fn settings(&self, layout: &Layout, config: &ServerConfig) -> Result<Option<Settings>, Error> {
        let usual = Settings::new(layout);
        let port = self.port.or(config.port).unwrap_or(usual.listen.port());
        if port == 0 || config.enabled == Some(false) {
            return Ok(None);
        }
        let absolute = |path: &Path| std::path::absolute(path).context("cannot make a path absolute");
        let either = |flag: &Option<PathBuf>, field: &Option<PathBuf>| {
            flag.as_ref().or(field.as_ref()).map(|path| absolute(path)).transpose()
        };
        let pair = match (
            either(&self.tls_cert_file, &config.tls_cert_file)?,
            either(&self.tls_private_key_file, &config.tls_private_key_file)?,
        ) {
            (Some(certificate), Some(key)) => Some(Pair { certificate, key }),
            (None, None) => None,
            _ => bail!("tlsCertFile and tlsPrivateKeyFile go together"),
        };
        Ok(Some(Settings {
            listen: SocketAddr::new(self.address.or(config.address).unwrap_or(usual.listen.ip()), port),
            client_ca: either(&self.client_ca_file, &config.client_ca_file)?.unwrap_or(usual.client_ca),
            pair,
        }))
    }
}
