//! Administration: thin calls that return the response's own structs, so that tools can print all a broker said.
//!
//! Errors of the call (no broker, no controller) are `Err`; errors of one topic, group or partition stay in its result,
//! as `error_code` and `error_message`.

mod cluster;
mod group;
mod partition;
mod quorum;
mod quota;
mod topic;
mod transaction;

pub use cluster::ConfigResourceType;
pub use group::{CommittedOffset, OffsetAndMetadata};
pub(crate) use group::{OFFSET_NAMES_VERSION, commit_results, commit_topics, committed, offset_fetch};
pub use partition::ElectionType;
pub use transaction::HangingTransaction;

use caudal_protocol::ErrorCode;

use crate::client::{Client, Lane};
use crate::config::ClientConfig;
use crate::error::{Error, Result};
use crate::request::Request;

/// What a coordinator is for: a group.
const GROUP: i8 = 0;
/// What a coordinator is for: a transactional id.
const TRANSACTION: i8 = 1;

/// Administration of a cluster.
#[derive(Debug, Clone)]
pub struct Admin {
    client: Client,
}

impl Admin {
    pub async fn connect(config: ClientConfig) -> Result<Admin> {
        Ok(Admin::new(Client::connect(config).await?))
    }

    /// Over the connections of a client.
    pub fn new(client: Client) -> Admin {
        Admin { client }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    fn timeout_ms(&self) -> i32 {
        i32::try_from(self.client.request_timeout().as_millis()).unwrap_or(i32::MAX)
    }

    /// Sends to the controller until an answer comes that does not say to look for another one.
    async fn to_controller<R: Request>(
        &self,
        what: &str,
        request: &R,
        codes: impl Fn(&R::Response) -> Vec<i16>,
    ) -> Result<R::Response> {
        let mut attempts = self.client.api_attempts(what);
        loop {
            let answer = match self.client.controller().await {
                Ok(node) => self.client.send(node, request).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(response) => {
                    let moved = codes(&response).into_iter().find(|code| *code == ErrorCode::NotController.code());
                    let Some(code) = moved else { return Ok(response) };
                    self.client.forget_controller();
                    attempts.pause(Error::server(what, code, None)).await?;
                }
                Err(error) => {
                    self.client.forget_controller();
                    attempts.pause(error).await?;
                }
            }
        }
    }

    /// Sends to a broker by its id, again after network errors.
    async fn to_node<R: Request>(&self, node_id: i32, what: &str, request: &R) -> Result<R::Response> {
        let mut attempts = self.client.api_attempts(what);
        loop {
            match self.client.send(node_id, request).await {
                Ok(response) => return Ok(response),
                Err(error) => attempts.pause(error).await?,
            }
        }
    }

    /// Sends to a group's coordinator until the answer does not say that it is another, or not ready.
    pub(crate) async fn to_coordinator<R: Request>(
        &self,
        group: &str,
        what: &str,
        request: &R,
        cap: i16,
        code: impl Fn(&R::Response) -> i16,
    ) -> Result<R::Response> {
        self.to_coordinator_of((group, GROUP), what, request, cap, code).await
    }

    /// As [`Admin::to_coordinator`], of a group or of a transactional id.
    pub(crate) async fn to_coordinator_of<R: Request>(
        &self,
        (key, key_type): (&str, i8),
        what: &str,
        request: &R,
        cap: i16,
        code: impl Fn(&R::Response) -> i16,
    ) -> Result<R::Response> {
        let mut attempts = self.client.api_attempts(what);
        loop {
            let answer = match self.client.coordinator(key, key_type).await {
                Ok(node) => {
                    let timeout = self.client.request_timeout();
                    self.client.send_on(node, Lane::Group, request, cap, timeout).await
                }
                Err(error) => Err(error),
            };
            let error = match answer {
                Ok(response) if !is_coordinator_error(code(&response)) => return Ok(response),
                Ok(response) => Error::server(what, code(&response), None),
                Err(error) => error,
            };
            self.client.forget_coordinator(key, key_type);
            attempts.pause(error).await?;
        }
    }
}

/// Whether a code says to look for the coordinator again, or to wait until it has loaded.
pub(crate) fn is_coordinator_error(code: i16) -> bool {
    matches!(
        ErrorCode::from_code(code),
        ErrorCode::CoordinatorLoadInProgress | ErrorCode::CoordinatorNotAvailable | ErrorCode::NotCoordinator
    )
}
