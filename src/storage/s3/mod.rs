//! What only S3's own interface has: copies that the store makes itself, also of large objects
//! and across regions, and the list of unfinished multipart uploads.
//!
//! The client is made when it is first needed, from the same options that object_store got, and
//! only if they mean nothing that it would have to be told in another way: where it cannot be
//! made, callers go the way that works everywhere. Archiving never comes here.

mod copy;
mod sweep;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use object_store::ClientConfigKey;
use object_store::aws::AmazonS3ConfigKey as Key;
use tokio::sync::OnceCell;
use url::Url;

use super::error::{ErrorKind, Failure};
use super::judge::{Verdict, judge_status};

pub use copy::{CopyLimits, ServerSide};

/// How one bucket is reached.
pub(super) struct Access {
    bucket: String,
    region: String,
    /// `None`: Amazon's own.
    endpoint: Option<String>,
    path_style: bool,
    /// `None`: the environment's, or the metadata service's.
    credentials: Option<Credentials>,
    client: OnceCell<Client>,
}

impl Access {
    /// From object_store's options, those of the environment among them. `own_credentials`:
    /// they were given in the configuration.
    ///
    /// # Errors
    /// An option that this client cannot honour; its name.
    pub(super) fn new(
        bucket: &str,
        options: &[(Key, String)],
        own_credentials: bool,
    ) -> Result<Self, String> {
        if let Some((key, _)) = options
            .iter()
            .find(|(key, _)| !is_honoured(*key, own_credentials))
        {
            return Err(key.as_ref().to_owned());
        }
        // As in object_store, the last one counts.
        let of = |wanted: &[Key]| {
            let found = options.iter().rev().find(|(key, _)| wanted.contains(key));
            found.map(|(_, value)| value.as_str())
        };
        let is_true = |value: &str| matches!(value, "true" | "1");
        let virtual_hosted = of(&[Key::VirtualHostedStyleRequest]).is_some_and(is_true);
        let endpoint = match of(&[Key::Endpoint, Key::S3Endpoint]) {
            // There object_store wants the bucket in the endpoint, and this client does not.
            Some(endpoint) if virtual_hosted => Some(without_bucket(endpoint, bucket)?),
            Some(endpoint) => Some(endpoint.trim_end_matches('/').to_owned()),
            None => None,
        };
        let credentials = match (
            own_credentials,
            of(&[Key::AccessKeyId]),
            of(&[Key::SecretAccessKey]),
        ) {
            (true, Some(id), Some(secret)) => {
                let token = of(&[Key::Token]).map(str::to_owned);
                Some(Credentials::new(id, secret, token, None, "options"))
            }
            (true, ..) => return Err("aws_secret_access_key".to_owned()),
            (false, ..) => None,
        };
        Ok(Self {
            bucket: bucket.to_owned(),
            region: of(&[Key::Region])
                .or(of(&[Key::DefaultRegion]))
                .unwrap_or("us-east-1")
                .to_owned(),
            endpoint,
            path_style: !virtual_hosted,
            credentials,
            client: OnceCell::new(),
        })
    }

    /// The client, made at the first call.
    async fn client(&self) -> &Client {
        self.client.get_or_init(|| self.connect()).await
    }

    async fn connect(&self) -> Client {
        let region = Region::new(self.region.clone());
        let timeouts = TimeoutConfig::builder().connect_timeout(std::time::Duration::from_secs(5));
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(region.clone())
            .force_path_style(self.path_style)
            // Ours are the only retries and the only limits of an attempt.
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts.build())
            // Stores that are not Amazon's know none of the newer checksums.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if let Some(endpoint) = &self.endpoint {
            config = config.endpoint_url(endpoint);
        }
        config = match &self.credentials {
            Some(credentials) => config.credentials_provider(credentials.clone()),
            // The chain alone, and not the whole shared configuration: an endpoint never comes
            // from the environment.
            None => {
                let chain =
                    aws_config::default_provider::credentials::DefaultCredentialsChain::builder();
                config.credentials_provider(chain.region(region).build().await)
            }
        };
        Client::from_conf(config.build())
    }
}

/// Whether the client made here does what this option says.
fn is_honoured(key: Key, own_credentials: bool) -> bool {
    match key {
        Key::AccessKeyId
        | Key::SecretAccessKey
        | Key::Token
        | Key::Region
        | Key::DefaultRegion
        | Key::Endpoint
        | Key::S3Endpoint
        | Key::VirtualHostedStyleRequest
        // About bodies and conditions, which these requests have none of.
        | Key::UnsignedPayload
        | Key::Checksum
        | Key::ConditionalPut
        | Key::CopyIfNotExists
        | Key::DisableTagging
        | Key::DisableBulkDelete => true,
        // The chain of credentials knows the environment's own.
        Key::WebIdentityTokenFile
        | Key::RoleArn
        | Key::RoleSessionName
        | Key::ContainerCredentialsRelativeUri
        | Key::ContainerCredentialsFullUri
        | Key::ContainerAuthorizationTokenFile => !own_credentials,
        Key::Client(client) => matches!(
            client,
            ClientConfigKey::AllowHttp
                | ClientConfigKey::ConnectTimeout
                | ClientConfigKey::ReadTimeout
                | ClientConfigKey::Timeout
                | ClientConfigKey::PoolIdleTimeout
                | ClientConfigKey::PoolMaxIdlePerHost
                | ClientConfigKey::Http1Only
                | ClientConfigKey::Http2Only
                | ClientConfigKey::Http2MaxFrameSize
                | ClientConfigKey::Http2KeepAliveInterval
                | ClientConfigKey::Http2KeepAliveTimeout
                | ClientConfigKey::Http2KeepAliveWhileIdle
                | ClientConfigKey::RandomizeAddresses
                | ClientConfigKey::UserAgent
        ),
        _ => false,
    }
}

fn without_bucket(endpoint: &str, bucket: &str) -> Result<String, String> {
    let unusual = || "aws_virtual_hosted_style_request".to_owned();
    let mut url = Url::parse(endpoint).map_err(|_| unusual())?;
    let host = url.host_str().map(str::to_owned);
    let host = host.as_deref().and_then(|host| host.strip_prefix(bucket));
    let host = host.and_then(|host| host.strip_prefix('.'));
    url.set_host(Some(host.ok_or_else(unusual)?))
        .map_err(|_| unusual())?;
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// What an answer of S3 means for us.
enum Answer {
    /// Not now, or not at all: judged as every failure of a store.
    Failed(Failure),
    /// The store, or who guards it, does not do this; another way may work.
    Refused(String),
}

fn answer_of<E: ProvideErrorMetadata + std::error::Error + 'static>(error: &SdkError<E>) -> Answer {
    let Some(response) = error.raw_response() else {
        let text = chain(error);
        let verdict = match error {
            SdkError::TimeoutError(_) => Verdict::new(ErrorKind::Timeout, true, text),
            SdkError::DispatchFailure(_) => Verdict::new(ErrorKind::Unavailable, true, text),
            // No credentials, or a request that cannot be built.
            _ => return Answer::Refused(text),
        };
        return Answer::Failed(Failure::Judged(verdict));
    };
    let status = response.status().as_u16();
    let said = error.as_service_error();
    let code = said.and_then(ProvideErrorMetadata::code);
    let refused = (300..500).contains(&status) && !matches!(status, 408 | 409 | 425 | 429);
    if refused || status == 501 {
        let code = code.map(|code| format!(" {code}")).unwrap_or_default();
        return Answer::Refused(format!("the store answered {status}{code}"));
    }
    Answer::Failed(Failure::Judged(judge_status(status, code, &chain(error))))
}

/// An error with its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(options: &[(Key, &str)], own: bool) -> Result<Access, String> {
        let options: Vec<(Key, String)> = options
            .iter()
            .map(|(key, value)| (*key, (*value).to_owned()))
            .collect();
        Access::new("b", &options, own)
    }

    #[test]
    fn options_that_the_client_cannot_honour_are_named_and_not_passed_over() {
        let keys = [
            (Key::AccessKeyId, "id"),
            (Key::SecretAccessKey, "s"),
            (Key::Region, "garage"),
        ];
        let plain = access(&keys, true).unwrap();
        assert!(plain.path_style && plain.endpoint.is_none());
        let with = |key, value| {
            let mut all = keys.to_vec();
            all.push((key, value));
            access(&all, true)
        };
        let refused = with(Key::Client(ClientConfigKey::ProxyUrl), "http://p")
            .err()
            .unwrap();
        assert_eq!(refused, "proxy_url");
        assert!(with(Key::SkipSignature, "true").is_err());
        assert!(with(Key::RoleArn, "arn").is_err());
        assert!(access(&[(Key::RoleArn, "arn")], false).is_ok());
        let endpoint = with(Key::Endpoint, "https://s3.example/").unwrap().endpoint;
        assert_eq!(endpoint.as_deref(), Some("https://s3.example"));
    }

    #[test]
    fn an_endpoint_that_holds_the_bucket_loses_it() {
        assert_eq!(
            without_bucket("https://b.s3.example:9000/", "b").unwrap(),
            "https://s3.example:9000"
        );
        assert!(without_bucket("https://s3.example", "b").is_err());
    }
}
