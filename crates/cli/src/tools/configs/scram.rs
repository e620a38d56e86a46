//! SCRAM credentials (RFC 5802): a user's password becomes a salted hash before it is sent.

use caudal_cluster::controller::ScramMechanism;
use caudal_protocol::messages::AlterUserScramCredentialsRequest;
use caudal_protocol::messages::alter_user_scram_credentials_request::{
    ScramCredentialDeletion, ScramCredentialUpsertion,
};

use crate::tools::Stop;

/// A kind of SCRAM credential.
#[derive(Debug)]
pub struct Mechanism {
    pub name: &'static str,
    pub id: i8,
    hash: ScramMechanism,
}

pub static MECHANISMS: [Mechanism; 2] = [
    Mechanism { name: "SCRAM-SHA-256", id: 1, hash: ScramMechanism::Sha256 },
    Mechanism { name: "SCRAM-SHA-512", id: 2, hash: ScramMechanism::Sha512 },
];

/// Iterations where none are given, and the fewest there may be.
const ITERATIONS: u32 = 4096;
const SALT_BYTES: usize = 24;

/// What sets and deletes (`None`) the credentials of a user.
pub fn request(user: &str, changes: &[(String, Option<String>)]) -> Result<AlterUserScramCredentialsRequest, Stop> {
    let mut request = AlterUserScramCredentialsRequest::default();
    for (name, value) in changes {
        let Some(mechanism) = MECHANISMS.iter().find(|m| m.name == name) else { continue };
        match value {
            None => request.deletions.push(ScramCredentialDeletion { name: user.to_owned(), mechanism: mechanism.id }),
            Some(text) => request.upsertions.push(upsertion(user, mechanism, text)?),
        }
    }
    Ok(request)
}

/// The credential of `iterations=8192,password=secret`.
fn upsertion(user: &str, mechanism: &Mechanism, text: &str) -> Result<ScramCredentialUpsertion, Stop> {
    let name = mechanism.name;
    let wrong = || Stop::Failed(format!("Invalid credential property {name}={text}"));
    let (iterations, rest) = match text.strip_prefix("iterations=") {
        Some(rest) => {
            let (number, rest) = rest.split_once(',').ok_or_else(wrong)?;
            (if number == "-1" { i64::from(ITERATIONS) } else { number.parse().map_err(|_| wrong())? }, rest)
        }
        None => (i64::from(ITERATIONS), text),
    };
    let password = rest.strip_prefix("password=").ok_or_else(wrong)?;
    let count = u32::try_from(iterations).ok().filter(|count| *count >= ITERATIONS).ok_or_else(|| {
        Stop::Failed(format!("Iterations {iterations} is less than the minimum {ITERATIONS} required for {name}"))
    })?;
    let salt: [u8; SALT_BYTES] = rand::random();
    Ok(ScramCredentialUpsertion {
        name: user.to_owned(),
        mechanism: mechanism.id,
        iterations: i32::try_from(count).map_err(|_| wrong())?,
        salted_password: mechanism.hash.salt_password(password.as_bytes(), &salt, count).into(),
        salt: salt.to_vec().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials() {
        let set = |text: &str| {
            request("u", &[("SCRAM-SHA-512".to_owned(), Some(text.to_owned()))]).map_err(|e| e.to_string())
        };
        let found = set("iterations=8192,password=a,b").unwrap().upsertions.remove(0);
        assert_eq!((found.mechanism, found.iterations, found.salted_password.len()), (2, 8192, 64));
        assert_eq!(found.salted_password, ScramMechanism::Sha512.salt_password(b"a,b", &found.salt, 8192));
        assert_eq!(set("password=x").unwrap().upsertions[0].iterations, 4096);
        assert_eq!(set("pass").unwrap_err(), "Invalid credential property SCRAM-SHA-512=pass");
        assert_eq!(
            set("iterations=10,password=x").unwrap_err(),
            "Iterations 10 is less than the minimum 4096 required for SCRAM-SHA-512"
        );
        let gone = request("u", &[("SCRAM-SHA-256".to_owned(), None)]).unwrap();
        assert_eq!((gone.deletions[0].mechanism, gone.upsertions.len()), (1, 0));
    }
}
