//! AlterUserScramCredentials (51), version 0 (KIP-554). The credentials are stored in the metadata log; no listener asks for
//! them yet.

use std::collections::BTreeSet;

use caudal_cluster::controller;
use caudal_protocol::messages::alter_user_scram_credentials_response::AlterUserScramCredentialsResult;
use caudal_protocol::messages::{AlterUserScramCredentialsRequest, AlterUserScramCredentialsResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: AlterUserScramCredentialsRequest,
    _version: i16,
) -> AlterUserScramCredentialsResponse {
    let decided = ctx.metadata.change(|image| controller::alter_user_scram_credentials(image, &request)).await;
    decided.unwrap_or_else(|error| {
        let deleted = request.deletions.into_iter().map(|deletion| deletion.name);
        let users: BTreeSet<String> = deleted.chain(request.upsertions.into_iter().map(|u| u.name)).collect();
        let results = users.into_iter().map(|user| AlterUserScramCredentialsResult {
            user,
            error_code: error.code.code(),
            error_message: Some(error.message.clone()),
        });
        AlterUserScramCredentialsResponse { throttle_time_ms: 0, results: results.collect() }
    })
}
