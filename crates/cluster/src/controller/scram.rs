//! Credentials of users for SCRAM (KIP-554). Nothing logs in with them yet; they are kept for when a listener asks for them.

use std::collections::BTreeMap;

use bytes::Bytes;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::alter_user_scram_credentials_request::{
    ScramCredentialDeletion, ScramCredentialUpsertion,
};
use caudal_protocol::messages::alter_user_scram_credentials_response::AlterUserScramCredentialsResult;
use caudal_protocol::messages::{AlterUserScramCredentialsRequest, AlterUserScramCredentialsResponse};
use caudal_protocol::records::metadata::{RemoveUserScramCredentialRecord, UserScramCredentialRecord};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha512};

use super::{ApiError, Decision, outcome};
use crate::image::MetadataImage;
use crate::record::MetadataRecord;

const MIN_ITERATIONS: i32 = 4096;
const MAX_ITERATIONS: i32 = 16_384;
/// The first metadata version with SCRAM (3.5-IV2).
const FROM_METADATA_VERSION: i16 = 11;

/// How passwords are hashed. The numbers are those of the protocol and of the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScramMechanism {
    Sha256,
    Sha512,
}

impl ScramMechanism {
    pub fn from_code(code: i8) -> Option<ScramMechanism> {
        match code {
            1 => Some(ScramMechanism::Sha256),
            2 => Some(ScramMechanism::Sha512),
            _ => None,
        }
    }

    /// What is sent in place of a password: `Hi` of RFC 5802, which is PBKDF2 with one block.
    pub fn salt_password(self, password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
        match self {
            ScramMechanism::Sha256 => pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password, salt, iterations).to_vec(),
            ScramMechanism::Sha512 => pbkdf2::pbkdf2_hmac_array::<Sha512, 64>(password, salt, iterations).to_vec(),
        }
    }

    /// What is stored of a salted password: the stored key and the server key (RFC 5802).
    fn keys(self, salted_password: &[u8]) -> (Vec<u8>, Vec<u8>) {
        match self {
            ScramMechanism::Sha256 => keys::<Hmac<Sha256>, Sha256>(salted_password),
            ScramMechanism::Sha512 => keys::<Hmac<Sha512>, Sha512>(salted_password),
        }
    }
}

fn keys<M: Clone + KeyInit + Mac, D: Digest>(salted_password: &[u8]) -> (Vec<u8>, Vec<u8>) {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    let keyed = <M as KeyInit>::new_from_slice(salted_password).expect("a key of any length is taken");
    let mac = |message: &[u8]| keyed.clone().chain_update(message).finalize().into_bytes();
    (D::digest(mac(b"Client Key")).to_vec(), mac(b"Server Key").to_vec())
}

/// What a request wants of one user.
enum Wanted<'r> {
    Delete(&'r ScramCredentialDeletion),
    Upsert(&'r ScramCredentialUpsertion),
}

/// Decides an AlterUserScramCredentials request, user by user.
pub fn alter_user_scram_credentials(
    image: &MetadataImage,
    request: &AlterUserScramCredentialsRequest,
) -> Decision<AlterUserScramCredentialsResponse> {
    let deletions = request.deletions.iter().map(|deletion| (&deletion.name, Wanted::Delete(deletion)));
    let upsertions = request.upsertions.iter().map(|upsertion| (&upsertion.name, Wanted::Upsert(upsertion)));
    let mut users: BTreeMap<&String, Result<MetadataRecord, ApiError>> = BTreeMap::new();
    for (name, wanted) in deletions.chain(upsertions) {
        let result = match users.get(name) {
            Some(Err(_)) => continue,
            Some(Ok(_)) => {
                let message = "A user credential cannot be altered twice in the same request";
                Err(ApiError::new(ErrorCode::DuplicateResource, message))
            }
            None => decide(image, &wanted),
        };
        users.insert(name, result);
    }
    let mut records = Vec::new();
    let mut results = Vec::new();
    for (user, result) in users {
        let (error_code, error_message) = outcome(&result.map(|record| records.push(record)));
        results.push(AlterUserScramCredentialsResult { user: user.clone(), error_code, error_message });
    }
    Decision { records, response: AlterUserScramCredentialsResponse { throttle_time_ms: 0, results } }
}

fn decide(image: &MetadataImage, wanted: &Wanted<'_>) -> Result<MetadataRecord, ApiError> {
    let (name, code) = match wanted {
        Wanted::Delete(deletion) => (&deletion.name, deletion.mechanism),
        Wanted::Upsert(upsertion) => (&upsertion.name, upsertion.mechanism),
    };
    if image.feature("metadata.version") < FROM_METADATA_VERSION {
        let message = "The current metadata.version does not support SCRAM";
        return Err(ApiError::new(ErrorCode::UnsupportedVersion, message));
    }
    if name.is_empty() {
        return Err(ApiError::new(ErrorCode::UnacceptableCredential, "Username must not be empty"));
    }
    let mechanism = ScramMechanism::from_code(code)
        .ok_or_else(|| ApiError::new(ErrorCode::UnsupportedSaslMechanism, "Unknown SCRAM mechanism"))?;
    match wanted {
        Wanted::Delete(_) if !image.scram_credentials().contains_key(&(name.clone(), code)) => {
            let message = "Attempt to delete a user credential that does not exist";
            Err(ApiError::new(ErrorCode::ResourceNotFound, message))
        }
        Wanted::Delete(_) => Ok(RemoveUserScramCredentialRecord { name: name.clone(), mechanism: code }.into()),
        Wanted::Upsert(upsertion) => upsert(upsertion, mechanism),
    }
}

fn upsert(upsertion: &ScramCredentialUpsertion, mechanism: ScramMechanism) -> Result<MetadataRecord, ApiError> {
    let unacceptable = |why: &str| Err(ApiError::new(ErrorCode::UnacceptableCredential, why));
    if upsertion.iterations < MIN_ITERATIONS {
        return unacceptable("Too few iterations");
    }
    if upsertion.iterations > MAX_ITERATIONS {
        return unacceptable("Too many iterations");
    }
    if upsertion.salted_password.is_empty() {
        return unacceptable("The salted password must not be empty");
    }
    let (stored_key, server_key) = mechanism.keys(&upsertion.salted_password);
    let record = UserScramCredentialRecord {
        name: upsertion.name.clone(),
        mechanism: upsertion.mechanism,
        salt: upsertion.salt.clone(),
        stored_key: Bytes::from(stored_key),
        server_key: Bytes::from(server_key),
        iterations: upsertion.iterations,
    };
    Ok(record.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn keys_are_those_of_the_example_in_rfc_7677() {
        // Password "pencil", salt W22ZaJ0SNY7soEsUEjb6gQ==, 4096 iterations.
        let salted = "c4a49510323ab4f952cac1fa99441939e78ea74d6be81ddf7096e87513dc615d";
        let salt = [91, 109, 153, 104, 157, 18, 53, 142, 236, 160, 75, 20, 18, 54, 250, 129];
        assert_eq!(hex(&ScramMechanism::Sha256.salt_password(b"pencil", &salt, 4096)), salted);
        let bytes: Vec<u8> = (0..32).map(|i| u8::from_str_radix(&salted[2 * i..2 * i + 2], 16).unwrap()).collect();
        let (stored, server) = ScramMechanism::Sha256.keys(&bytes);
        assert_eq!(hex(&stored), "586e5df283e6dceb5c3e791d8b8528ec191e664045ce971792e2e6b5bb13e2a6");
        assert_eq!(hex(&server), "c1f3cbc1c13a9d35a14c0990eed97629ea225863e566a4314ab99f3f00e5d9d5");
    }
}
