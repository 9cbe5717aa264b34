//! A store's options, and the names that they may have.
//!
//! The names are object_store's own. It can't enumerate them, so that they stand here once
//! more, for the advice about a misspelt one; and the variables that credentials are taken
//! from where the options hold none.

use std::collections::BTreeMap;
use std::fmt;

/// A store's options: object_store's own keys (`aws_region`, `google_service_account`,
/// `timeout`, …) with their values, secrets already resolved. `Debug` shows keys only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Options(pub BTreeMap<String, String>);

impl Options {
    /// Sets an option.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.0.insert(key.into(), value.into());
    }
}

impl From<BTreeMap<String, String>> for Options {
    fn from(options: BTreeMap<String, String>) -> Self {
        Self(options)
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Options {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(options: I) -> Self {
        Self(
            options
                .into_iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
        )
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

pub(super) const S3_CREDENTIAL_VARIABLES: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

pub(super) const GOOGLE_CREDENTIAL_VARIABLES: &[&str] = &[
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS",
];

pub(super) const AZURE_CREDENTIAL_VARIABLES: &[&str] = &[
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
];

pub(super) const CLIENT_KEYS: &[&str] = &[
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "default_content_type",
    "disable_system_certificates",
    "http1_only",
    "http2_keep_alive_interval",
    "http2_keep_alive_timeout",
    "http2_keep_alive_while_idle",
    "http2_max_frame_size",
    "http2_only",
    "pool_idle_timeout",
    "pool_max_idle_per_host",
    "proxy_ca_certificate",
    "proxy_excludes",
    "proxy_url",
    "randomize_addresses",
    "read_timeout",
    "timeout",
    "user_agent",
];

pub(super) const S3_KEYS: &[&str] = &[
    "aws_access_key_id",
    "aws_allow_http",
    "aws_checksum_algorithm",
    "aws_conditional_put",
    "aws_container_authorization_token_file",
    "aws_container_credentials_full_uri",
    "aws_container_credentials_relative_uri",
    "aws_copy_if_not_exists",
    "aws_default_region",
    "aws_disable_bulk_delete",
    "aws_disable_tagging",
    "aws_endpoint",
    "aws_endpoint_url",
    "aws_endpoint_url_s3",
    "aws_endpoint_url_sts",
    "aws_imdsv1_fallback",
    "aws_metadata_endpoint",
    "aws_region",
    "aws_request_payer",
    "aws_role_arn",
    "aws_role_session_name",
    "aws_s3_express",
    "aws_secret_access_key",
    "aws_server_side_encryption",
    "aws_session_token",
    "aws_skip_signature",
    "aws_sse_bucket_key_enabled",
    "aws_sse_customer_key_base64",
    "aws_sse_kms_key_id",
    "aws_unsigned_payload",
    "aws_virtual_hosted_style_request",
    "aws_web_identity_token_file",
];

pub(super) const GOOGLE_KEYS: &[&str] = &[
    "google_application_credentials",
    "google_base_url",
    "google_bearer_token",
    "google_service_account",
    "google_service_account_key",
    "google_skip_signature",
];

pub(super) const AZURE_KEYS: &[&str] = &[
    "azure_allow_http",
    "azure_client_id",
    "azure_client_secret",
    "azure_credential_type",
    "azure_disable_tagging",
    "azure_endpoint",
    "azure_federated_token_file",
    "azure_msi_endpoint",
    "azure_msi_resource_id",
    "azure_object_id",
    "azure_skip_signature",
    "azure_storage_account_key",
    "azure_storage_account_name",
    "azure_storage_endpoint",
    "azure_storage_sas_key",
    "azure_storage_token",
    "azure_storage_use_emulator",
    "azure_tenant_id",
    "azure_use_azure_cli",
    "azure_use_fabric_endpoint",
];

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ClientConfigKey;
    use object_store::aws::AmazonS3ConfigKey;
    use object_store::azure::AzureConfigKey;
    use object_store::gcp::GoogleConfigKey;

    #[test]
    fn every_name_that_is_advised_is_known_to_object_store() {
        let check = |known: &[&str], parses: &dyn Fn(&str) -> bool| {
            for name in known {
                assert!(parses(&name.to_ascii_lowercase()), "{name}");
            }
        };
        let s3 = |name: &str| name.parse::<AmazonS3ConfigKey>().is_ok();
        let google = |name: &str| name.parse::<GoogleConfigKey>().is_ok();
        let azure = |name: &str| name.parse::<AzureConfigKey>().is_ok();
        for parses in [&s3 as &dyn Fn(&str) -> bool, &google, &azure] {
            check(CLIENT_KEYS, parses);
        }
        check(CLIENT_KEYS, &|name| name.parse::<ClientConfigKey>().is_ok());
        check(S3_KEYS, &s3);
        check(S3_CREDENTIAL_VARIABLES, &s3);
        check(GOOGLE_KEYS, &google);
        check(GOOGLE_CREDENTIAL_VARIABLES, &google);
        check(AZURE_KEYS, &azure);
        check(AZURE_CREDENTIAL_VARIABLES, &azure);
    }

    #[test]
    fn options_show_their_keys_only() {
        let options: Options = [("aws_secret_access_key", "hidden")].into_iter().collect();
        assert_eq!(format!("{options:?}"), r#"{"aws_secret_access_key"}"#);
    }
}
