//! DescribeUserScramCredentials (50), version 0 (KIP-554): mechanisms and iterations, never the keys.

use std::collections::BTreeMap;

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::describe_user_scram_credentials_response::{
    CredentialInfo, DescribeUserScramCredentialsResult,
};
use caudal_protocol::messages::{DescribeUserScramCredentialsRequest, DescribeUserScramCredentialsResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: DescribeUserScramCredentialsRequest,
    _version: i16,
) -> DescribeUserScramCredentialsResponse {
    let image = ctx.metadata.image();
    let mut infos: BTreeMap<&str, Vec<CredentialInfo>> = BTreeMap::new();
    for ((user, mechanism), credential) in image.scram_credentials() {
        let info = CredentialInfo { mechanism: *mechanism, iterations: credential.iterations };
        infos.entry(user).or_default().push(info);
    }
    // How often each is asked for.
    let mut wanted: BTreeMap<String, usize> = BTreeMap::new();
    for user in request.users.unwrap_or_default() {
        *wanted.entry(user.name).or_default() += 1;
    }
    if wanted.is_empty() {
        wanted = infos.keys().map(|user| ((*user).to_owned(), 1)).collect();
    }
    let results = wanted.into_iter().map(|(user, times)| {
        let refused = |error: ErrorCode, message: String| DescribeUserScramCredentialsResult {
            error_code: error.code(),
            error_message: Some(message),
            ..DescribeUserScramCredentialsResult::default()
        };
        let result = match infos.remove(user.as_str()) {
            _ if times > 1 => refused(
                ErrorCode::DuplicateResource,
                format!("Cannot describe SCRAM credentials for the same user twice in a single request: {user}"),
            ),
            None => refused(
                ErrorCode::ResourceNotFound,
                format!("Attempt to describe a user credential that does not exist: {user}"),
            ),
            Some(credential_infos) => DescribeUserScramCredentialsResult {
                credential_infos,
                error_message: None,
                ..DescribeUserScramCredentialsResult::default()
            },
        };
        DescribeUserScramCredentialsResult { user, ..result }
    });
    DescribeUserScramCredentialsResponse {
        results: results.collect(),
        error_message: None,
        ..DescribeUserScramCredentialsResponse::default()
    }
}
