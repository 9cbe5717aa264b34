//! TLS as `sslmode` and `sslrootcert` ask for it, over rustls with aws-lc-rs.
//!
//! Two differences from libpq remain: a certificate without a subjectAltName is valid for no
//! name (libpq falls back to its common name), and revocation lists are not read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore};
use rustls::{Error as TlsError, SignatureScheme};

use super::SslMode;
use crate::error::{Error, IoContext, Result};

/// Whom to trust, from `sslrootcert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCertificates {
    /// Nobody in particular.
    None,
    /// Whom the operating system trusts.
    System,
    /// The certificates of a PEM file.
    File(PathBuf),
    /// The same, if there is such a file: libpq's default place.
    FileIfThere(PathBuf),
}

/// A TLS configuration for a mode other than `disable`. Files are read each time.
///
/// As in libpq, where there are root certificates the server's is checked against them in
/// every mode, and its name only in `verify-full`.
pub fn client_config(mode: SslMode, root: &RootCertificates) -> Result<ClientConfig> {
    let roots = match root {
        RootCertificates::None => None,
        RootCertificates::FileIfThere(path) if !path.exists() => None,
        RootCertificates::File(path) | RootCertificates::FileIfThere(path) => Some(read(path)?),
        RootCertificates::System => {
            let found = rustls_native_certs::load_native_certs();
            let why = found.errors.into_iter().next();
            match (found.certs.is_empty(), why) {
                (true, Some(why)) => {
                    return Err(
                        Error::failed("cannot read the system's root certificates").because(why)
                    );
                }
                _ => Some(found.certs),
            }
        }
    };
    if roots.as_ref().is_none_or(Vec::is_empty) && mode >= SslMode::VerifyCa {
        return Err(
            Error::usage("sslmode=verify-ca and verify-full need root certificates")
                .hint("add sslrootcert=FILE, or sslrootcert=system"),
        );
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Verifier::new(roots, mode == SslMode::VerifyFull, provider.clone())?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::failed("cannot set up TLS").because(error))?;
    Ok(config
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(path).on("read", path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(Error::usage("sslrootcert holds no certificate").at(path.display())),
        Err(error) => Err(Error::usage("sslrootcert is no PEM file of certificates")
            .at(path.display())
            .because(error)),
    }
}

/// Checks as much as the mode asks for.
#[derive(Debug)]
struct Verifier {
    /// None checks nothing, as `require` without root certificates.
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// Root certificates that a server may also present as its own. webpki refuses that; with
    /// libpq and a self-signed certificate it is the usual way.
    pinned: Vec<CertificateDer<'static>>,
    check_name: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(
        roots: Option<Vec<CertificateDer<'static>>>,
        check_name: bool,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self> {
        let chain = match &roots {
            None => None,
            Some(certificates) => {
                let mut store = RootCertStore::empty();
                store.add_parsable_certificates(certificates.iter().cloned());
                let builder =
                    WebPkiServerVerifier::builder_with_provider(store.into(), provider.clone());
                Some(builder.build().map_err(|error| {
                    Error::usage("sslrootcert holds no usable certificate").because(error)
                })?)
            }
        };
        Ok(Self {
            chain,
            pinned: roots.unwrap_or_default(),
            check_name,
            provider,
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        if self.pinned.iter().any(|root| root == end_entity) {
            if self.check_name {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        let verified =
            chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The name is looked at last: everything else was right.
            Err(TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.check_name => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
