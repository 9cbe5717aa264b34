//! From a URL and options to a store: which kind it is, which options it knows, and where its
//! credentials come from.
//!
//! object_store's `parse_url_opts` ignores unknown keys, so that a misspelt `aws_regoin` would
//! only show as a strange answer of the store. Here every key must be known.
//!
//! Credentials: those in the options. Only if there are none, the environment is asked for
//! the provider's usual variables, and for these alone (never for an endpoint), then the
//! metadata service; so two stores with credentials of their own never mix them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, RetryConfig};
use url::Url;

use super::error::{ErrorKind, OPEN, StorageError};
use super::judge::text_of;
use super::local::{self, LocalFiles};
use super::options::{
    AZURE_CREDENTIAL_VARIABLES, AZURE_KEYS, CLIENT_KEYS, GOOGLE_CREDENTIAL_VARIABLES, GOOGLE_KEYS,
    S3_CREDENTIAL_VARIABLES, S3_KEYS,
};
use super::s3::Access;
use super::{Backend, Options, Provider, StoreSettings};

/// An opened backend.
pub(super) struct Opened {
    pub(super) url: String,
    pub(super) provider: Provider,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) local: Option<LocalFiles>,
    /// S3's own interface, or why it is not used.
    pub(super) s3: Result<Arc<Access>, String>,
    pub(super) prefix: Path,
}

/// How the environment is asked, so that tests need not change it.
type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

pub(super) fn open(
    settings: &StoreSettings,
    environment: Environment<'_>,
) -> Result<Opened, StorageError> {
    let place = Place::parse(&settings.url)?;
    let options = &settings.options;
    let opened = |provider, backend| Opened {
        url: place.url.clone(),
        provider,
        backend,
        local: None,
        s3: Err("this is no store of S3's".to_owned()),
        prefix: place.prefix.clone(),
    };
    match place.provider {
        Provider::Local => {
            place.refuse_options(options)?;
            let files = LocalFiles::open(&place.root).map_err(|error| {
                let missing = !place.root.is_dir();
                let kind = match missing {
                    true => ErrorKind::Unavailable,
                    false => ErrorKind::Misconfigured,
                };
                let failure = place.error(kind, text_of(&error));
                match missing {
                    true => failure
                        .hint("mount its file system, or make the repository with `seawall init`"),
                    false => failure,
                }
            })?;
            Ok(Opened {
                local: Some(files.clone()),
                ..opened(Provider::Local, Arc::new(files))
            })
        }
        Provider::Memory => {
            place.refuse_options(options)?;
            Ok(Opened {
                prefix: Path::default(),
                ..opened(Provider::Memory, memory(place.prefix.as_ref()))
            })
        }
        Provider::S3 => {
            let (backend, s3) = place.s3(options, environment)?;
            let opened = opened(Provider::S3, backend);
            Ok(Opened { s3, ..opened })
        }
        Provider::Google => Ok(opened(
            Provider::Google,
            place.google(options, environment)?,
        )),
        Provider::Azure => Ok(opened(Provider::Azure, place.azure(options, environment)?)),
    }
}

pub(super) fn create_root(url: &str) -> Result<(), StorageError> {
    let place = Place::parse(url)?;
    if place.provider != Provider::Local {
        return Ok(());
    }
    local::create_root(&place.root).map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            std::io::ErrorKind::StorageFull => ErrorKind::Full,
            _ => ErrorKind::Other,
        };
        StorageError::new(
            "make the directory",
            "",
            &place.url,
            kind,
            error.to_string(),
        )
    })
}

/// Stores in memory by their names, for several openers in one process.
fn memory(name: &str) -> Arc<dyn Backend> {
    static NAMED: OnceLock<Mutex<HashMap<String, Arc<InMemory>>>> = OnceLock::new();
    if name.is_empty() {
        return Arc::new(InMemory::new());
    }
    let mut named = NAMED
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    Arc::clone(named.entry(name.to_owned()).or_default()) as Arc<dyn Backend>
}

/// An S3 bucket by object_store, and by S3's own interface or why it is not used.
type S3 = (Arc<dyn Backend>, Result<Arc<Access>, String>);

/// What a URL says.
struct Place {
    url: String,
    provider: Provider,
    /// Bucket or container.
    bucket: String,
    prefix: Path,
    /// The directory, for local files.
    root: PathBuf,
}

impl Place {
    fn parse(text: &str) -> Result<Self, StorageError> {
        // Not the text itself, before it is known to hold no password.
        let shown = text.split_once("://").map_or("…", |(scheme, _)| scheme);
        let wrong = |why: String| {
            StorageError::new(OPEN, "", &format!("{shown}://…"), ErrorKind::Misconfigured, why)
                .hint("a repository's url is file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix")
        };
        let parsed = Url::parse(text).map_err(|error| wrong(error.to_string()))?;
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(wrong(
                "credentials belong into the options, not into the url".into(),
            ));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(wrong("a repository's url has no ? and no #".into()));
        }
        let provider = match parsed.scheme() {
            "file" => Provider::Local,
            "memory" => Provider::Memory,
            "s3" => Provider::S3,
            "gs" => Provider::Google,
            "az" => Provider::Azure,
            other => return Err(wrong(format!("{other}:// is no kind of store known here"))),
        };
        let host = parsed.host_str().unwrap_or_default();
        let needs_bucket = !matches!(provider, Provider::Local | Provider::Memory);
        if needs_bucket == host.is_empty() {
            return Err(wrong(match needs_bucket {
                true => "the bucket is missing".into(),
                false => format!("three slashes are needed: {}:///…", parsed.scheme()),
            }));
        }
        let mut place = Self {
            url: match text.ends_with(":///") {
                true => text.to_owned(),
                false => text.trim_end_matches('/').to_owned(),
            },
            provider,
            bucket: host.to_owned(),
            prefix: Path::default(),
            root: PathBuf::new(),
        };
        if provider == Provider::Local {
            place.root = parsed
                .to_file_path()
                .map_err(|()| wrong("this is no path of a directory".into()))?;
        } else {
            place.prefix =
                Path::from_url_path(parsed.path()).map_err(|error| wrong(error.to_string()))?;
        }
        Ok(place)
    }

    fn error(&self, kind: ErrorKind, cause: impl Into<String>) -> StorageError {
        StorageError::new(OPEN, "", &self.url, kind, cause)
    }

    fn wrong(&self, cause: impl Into<String>) -> StorageError {
        self.error(ErrorKind::Misconfigured, cause)
    }

    fn refuse_options(&self, options: &Options) -> Result<(), StorageError> {
        match options.0.keys().next() {
            Some(key) => Err(self
                .wrong(format!("this kind of store has no option {key}"))
                .hint("remove it from the repository's options")),
            None => Ok(()),
        }
    }

    /// The store's own key for an option, or an error that names the nearest one.
    fn key<K: FromStr>(&self, name: &str, known: &[&[&str]]) -> Result<K, StorageError> {
        name.parse().map_err(|_| {
            let failure = self.wrong(format!("this kind of store has no option {name}"));
            let nearest = known
                .iter()
                .copied()
                .flatten()
                .map(|known| (strsim::jaro_winkler(name, known), *known))
                .filter(|(likeness, _)| *likeness > 0.75)
                .max_by(|a, b| a.0.total_cmp(&b.0));
            match nearest {
                Some((_, nearest)) => failure.hint(format!("did you mean {nearest}?")),
                None => failure.hint(format!("it knows {}", known.concat().join(", "))),
            }
        })
    }

    fn built<T>(&self, result: object_store::Result<T>) -> Result<T, StorageError> {
        result.map_err(|error| self.wrong(text_of(&error)))
    }

    fn s3(&self, options: &Options, environment: Environment<'_>) -> Result<S3, StorageError> {
        use AmazonS3ConfigKey as Key;
        let mut given: Vec<(Key, String)> = Vec::new();
        for (name, value) in &options.0 {
            let key = self.key::<Key>(name, &[S3_KEYS, CLIENT_KEYS])?;
            if key == Key::Bucket {
                return Err(self.wrong("the bucket stands in the url, not in the options"));
            }
            given.push((key, value.clone()));
        }
        let has =
            |given: &[(Key, String)], keys: &[Key]| given.iter().any(|(key, _)| keys.contains(key));
        let credentials = [
            Key::AccessKeyId,
            Key::SecretAccessKey,
            Key::Token,
            Key::WebIdentityTokenFile,
            Key::RoleArn,
            Key::ContainerCredentialsRelativeUri,
            Key::ContainerCredentialsFullUri,
            Key::SkipSignature,
            Key::MetadataEndpoint,
        ];
        let own_credentials = has(&given, &credentials);
        if !own_credentials {
            for name in S3_CREDENTIAL_VARIABLES {
                if let Some(value) = environment(name) {
                    let key = name.to_ascii_lowercase();
                    given.push((self.key::<Key>(&key, &[S3_KEYS])?, value));
                }
            }
        }
        let regions = [Key::Region, Key::DefaultRegion];
        if !has(&given, &regions) {
            let region = environment("AWS_REGION").or_else(|| environment("AWS_DEFAULT_REGION"));
            let Some(region) = region else {
                return Err(self.wrong("the region is missing").hint(
                    "set aws_region in the repository's options (Garage: its s3_region, MinIO: us-east-1)",
                ));
            };
            given.push((Key::Region, region));
        }
        let endpoint = given
            .iter()
            .find(|(key, _)| matches!(key, Key::Endpoint | Key::S3Endpoint))
            .map(|(_, value)| value.as_str());
        let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
        let allowed = given.iter().any(|(key, value)| {
            *key == Key::Client(ClientConfigKey::AllowHttp)
                && matches!(value.as_str(), "true" | "1")
        });
        if plain && !allowed {
            return Err(self
                .wrong("the endpoint is plain HTTP, which is not allowed")
                .hint("use https://, or set aws_allow_http = \"true\""));
        }
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&self.bucket)
            .with_retry(no_retries())
            .with_client_options(client_options())
            // TLS already guards the body on its way: hashing it once more for the signature
            // would cost as much as compressing it.
            .with_unsigned_payload(!plain);
        let access = Access::new(&self.bucket, &given, own_credentials)
            .map(Arc::new)
            .map_err(|option| format!("the client for copies does not honour the option {option}"));
        for (key, value) in given {
            builder = builder.with_config(key, value);
        }
        Ok((Arc::new(self.built(builder.build())?), access))
    }

    fn google(
        &self,
        options: &Options,
        environment: Environment<'_>,
    ) -> Result<Arc<dyn Backend>, StorageError> {
        use GoogleConfigKey as Key;
        let mut builder = GoogleCloudStorageBuilder::new()
            .with_bucket_name(&self.bucket)
            .with_retry(no_retries())
            .with_client_options(client_options());
        let mut has_credentials = false;
        for (name, value) in &options.0 {
            let key = self.key::<Key>(name, &[GOOGLE_KEYS, CLIENT_KEYS])?;
            if key == Key::Bucket {
                return Err(self.wrong("the bucket stands in the url, not in the options"));
            }
            has_credentials |= !matches!(key, Key::Client(_) | Key::BaseUrl);
            builder = builder.with_config(key, value);
        }
        if !has_credentials {
            for name in GOOGLE_CREDENTIAL_VARIABLES {
                if let Some(value) = environment(name) {
                    let key = self.key::<Key>(&name.to_ascii_lowercase(), &[GOOGLE_KEYS])?;
                    builder = builder.with_config(key, value);
                    break;
                }
            }
        }
        Ok(Arc::new(self.built(builder.build())?))
    }

    fn azure(
        &self,
        options: &Options,
        environment: Environment<'_>,
    ) -> Result<Arc<dyn Backend>, StorageError> {
        use AzureConfigKey as Key;
        let mut builder = MicrosoftAzureBuilder::new()
            .with_container_name(&self.bucket)
            .with_retry(no_retries())
            .with_client_options(client_options());
        let (mut has_credentials, mut has_account) = (false, false);
        for (name, value) in &options.0 {
            let key = self.key::<Key>(name, &[AZURE_KEYS, CLIENT_KEYS])?;
            if key == Key::ContainerName {
                return Err(self.wrong("the container stands in the url, not in the options"));
            }
            has_account |= key == Key::AccountName;
            has_credentials |= !matches!(
                key,
                Key::Client(_) | Key::AccountName | Key::Endpoint | Key::DisableTagging
            );
            builder = builder.with_config(key, value);
        }
        let variables = AZURE_CREDENTIAL_VARIABLES
            .iter()
            .filter(|_| !has_credentials);
        let account = ["AZURE_STORAGE_ACCOUNT_NAME"];
        for name in variables.chain(account.iter().filter(|_| !has_account)) {
            if let Some(value) = environment(name) {
                let key = self.key::<Key>(&name.to_ascii_lowercase(), &[AZURE_KEYS])?;
                builder = builder.with_config(key, value);
            }
        }
        Ok(Arc::new(self.built(builder.build())?))
    }
}

/// Ours are the only retries, so that they are counted and every store has the same.
fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        retry_timeout: Duration::ZERO,
        backoff: BackoffConfig::default(),
    }
}

/// The request as a whole is limited by the retry policy, which knows the body's size.
fn client_options() -> ClientOptions {
    ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(Duration::from_secs(5))
}
