//! AlterClientQuotas (49), versions 0-1 (KIP-546). Quotas are in effect when they are answered, see [`crate::quota`].

use std::collections::BTreeSet;
use std::net::{IpAddr, ToSocketAddrs};

use caudal_cluster::controller::{self, IP};
use caudal_protocol::messages::alter_client_quotas_response::{EntityData, EntryData};
use caudal_protocol::messages::{AlterClientQuotasRequest, AlterClientQuotasResponse};

use super::RequestHeader;
use crate::context::Context;

/// Host names that are looked up for one request.
const MAX_LOOKUPS: usize = 16;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: AlterClientQuotasRequest,
    _version: i16,
) -> AlterClientQuotasResponse {
    let unknown = unknown_hosts(ctx, &request).await;
    let decided = ctx.metadata.change(|image| controller::alter_client_quotas(image, &request, &unknown)).await;
    decided.unwrap_or_else(|error| {
        let entries = request.entries.into_iter().map(|entry| EntryData {
            error_code: error.code.code(),
            error_message: Some(error.message.clone()),
            entity: entry
                .entity
                .into_iter()
                .map(|e| EntityData { entity_type: e.entity_type, entity_name: e.entity_name })
                .collect(),
        });
        AlterClientQuotasResponse { throttle_time_ms: 0, entries: entries.collect() }
    })
}

/// What is named as an address and is none, nor the name of a host.
async fn unknown_hosts(ctx: &Context, request: &AlterClientQuotasRequest) -> BTreeSet<String> {
    let entities = request.entries.iter().flat_map(|entry| &entry.entity);
    let named = entities.filter(|e| e.entity_type == IP).filter_map(|e| e.entity_name.clone());
    let mut names: BTreeSet<String> = named.filter(|name| name.parse::<IpAddr>().is_err()).collect();
    if names.is_empty() {
        return names;
    }
    let looked_up = ctx.blocking(None, move || {
        let known = |name: &String| (name.as_str(), 0).to_socket_addrs().is_ok_and(|mut found| found.next().is_some());
        let found: Vec<String> = names.iter().take(MAX_LOOKUPS).filter(|name| known(name)).cloned().collect();
        found.iter().for_each(|name| _ = names.remove(name));
        names
    });
    looked_up.await
}
