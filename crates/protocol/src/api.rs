//! Request types, their versions and the headers they use.

pub use crate::generated::api_table::{APIS, ApiKey, ApiSchema};

impl ApiKey {
    pub fn from_code(code: i16) -> Option<ApiKey> {
        APIS.iter().find(|a| a.key.code() == code).map(|a| a.key)
    }

    pub fn code(self) -> i16 {
        self as i16
    }

    /// What Apache Kafka's schemas say of this request type; `None` never happens for a key of the table.
    pub fn schema(self) -> Option<&'static ApiSchema> {
        APIS.iter().find(|a| a.key == self)
    }

    pub fn name(self) -> &'static str {
        self.schema().map_or("Unknown", |s| s.name)
    }

    fn is_flexible(self, version: i16) -> bool {
        self.schema().is_some_and(|s| version >= s.flexible_from)
    }

    /// Version of `RequestHeader` before a request of this version: 2 with tagged fields, else 1.
    pub fn request_header_version(self, version: i16) -> i16 {
        if self.is_flexible(version) { 2 } else { 1 }
    }

    /// Version of `ResponseHeader`. ApiVersions always answers with version 0, since a client that asked with a
    /// version the broker does not know must still be able to read the answer (KIP-511).
    pub fn response_header_version(self, version: i16) -> i16 {
        if self != ApiKey::ApiVersions && self.is_flexible(version) { 1 } else { 0 }
    }
}
