//! ListTransactions (66), versions 0-2: transactional ids by state, producer, age (1, KIP-994) and pattern (2, KIP-1152).
//!
//! Patterns are regular expressions that have to match the whole id; those of Java that look around or back are refused.

use std::collections::HashSet;

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::list_transactions_request::ListTransactionsRequest;
use caudal_protocol::messages::list_transactions_response::{ListTransactionsResponse, TransactionState};
use regex::RegexBuilder;

use super::RequestHeader;
use crate::clock::wall_ms;
use crate::context::Context;
use crate::transaction::State;

/// Bounds what a pattern may unfold to, in bytes.
const PATTERN_MOST: usize = 1 << 20;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: ListTransactionsRequest,
    _version: i16,
) -> ListTransactionsResponse {
    let failed =
        |error: ErrorCode| ListTransactionsResponse { error_code: error.code(), ..ListTransactionsResponse::default() };
    let pattern = request.transactional_id_pattern.as_deref().filter(|pattern| !pattern.is_empty());
    let whole = pattern.map(|pattern| RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(PATTERN_MOST).build());
    let Ok(pattern) = whole.transpose() else { return failed(ErrorCode::InvalidRegularExpression) };
    let known = |name: &String| State::from_name(name);
    let states: HashSet<State> = request.state_filters.iter().filter_map(known).collect();
    let unknown_state_filters = request.state_filters.iter().filter(|name| known(name).is_none()).cloned().collect();
    let producers: HashSet<i64> = request.producer_id_filters.iter().copied().collect();
    let now_ms = wall_ms();
    let found = ctx.transactions.view(|entries| {
        let wanted = entries.filter(|(id, entry)| {
            let current = &entry.current;
            entry.pending != Some(State::Dead)
                && (producers.is_empty() || producers.contains(&current.producer_id))
                && (request.state_filters.is_empty() || states.contains(&current.state))
                && (request.duration_filter < 0 || now_ms - current.start_ms > request.duration_filter)
                && pattern.as_ref().is_none_or(|pattern| pattern.is_match(id))
        });
        let shown = wanted.map(|(id, entry)| TransactionState {
            transactional_id: id.clone(),
            producer_id: entry.current.producer_id,
            transaction_state: entry.current.state.name().to_owned(),
        });
        shown.collect()
    });
    match found {
        Ok(transaction_states) => ListTransactionsResponse {
            unknown_state_filters,
            transaction_states,
            ..ListTransactionsResponse::default()
        },
        Err(error) => failed(error),
    }
}
