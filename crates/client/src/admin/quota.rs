//! Quotas of clients, users and addresses; SCRAM credentials.

use caudal_protocol::messages as m;
use caudal_protocol::messages::alter_client_quotas_request::EntryData as QuotaChange;
use caudal_protocol::messages::alter_client_quotas_response::EntryData as QuotaChanged;
use caudal_protocol::messages::alter_user_scram_credentials_response::AlterUserScramCredentialsResult;
use caudal_protocol::messages::describe_client_quotas_request::ComponentData;
use caudal_protocol::messages::describe_client_quotas_response::EntryData as Quotas;
use caudal_protocol::messages::describe_user_scram_credentials_request::UserName;
use caudal_protocol::messages::describe_user_scram_credentials_response::DescribeUserScramCredentialsResult;

use super::Admin;
use crate::error::{Result, check};

impl Admin {
    /// Quotas of the entities that match all components (KIP-546), and with `strict` have no others.
    pub async fn describe_client_quotas(&self, components: Vec<ComponentData>, strict: bool) -> Result<Vec<Quotas>> {
        let request = m::DescribeClientQuotasRequest { components, strict };
        let response = self.client.send_any(&request).await?;
        let what = || "describe quotas".to_owned();
        check(response.error_code, response.error_message.as_deref(), what)?;
        Ok(response.entries.unwrap_or_default())
    }

    /// Sets and removes quotas. Each entity has its own result.
    pub async fn alter_client_quotas(&self, entries: Vec<QuotaChange>) -> Result<Vec<QuotaChanged>> {
        let request = m::AlterClientQuotasRequest { entries, validate_only: false };
        let codes = |r: &m::AlterClientQuotasResponse| r.entries.iter().map(|e| e.error_code).collect();
        Ok(self.to_controller("alter quotas", &request, codes).await?.entries)
    }

    /// Which SCRAM credentials users have (KIP-554); `None`: all users that have some. A user that fails has an error code.
    pub async fn describe_scram_credentials(
        &self,
        users: Option<&[String]>,
    ) -> Result<Vec<DescribeUserScramCredentialsResult>> {
        let user = |name: &String| UserName { name: name.clone() };
        let request =
            m::DescribeUserScramCredentialsRequest { users: users.map(|users| users.iter().map(user).collect()) };
        let response = self.client.send_any(&request).await?;
        let what = || "describe SCRAM credentials".to_owned();
        check(response.error_code, response.error_message.as_deref(), what)?;
        Ok(response.results)
    }

    /// Sets and deletes SCRAM credentials. Each user has a result.
    pub async fn alter_scram_credentials(
        &self,
        request: &m::AlterUserScramCredentialsRequest,
    ) -> Result<Vec<AlterUserScramCredentialsResult>> {
        let codes = |r: &m::AlterUserScramCredentialsResponse| r.results.iter().map(|u| u.error_code).collect();
        Ok(self.to_controller("alter SCRAM credentials", request, codes).await?.results)
    }
}
