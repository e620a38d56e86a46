//! SCRAM credentials (RFC 5802): a user's password becomes a salted hash before it is sent.

use caudal_protocol::messages::AlterUserScramCredentialsRequest;
use caudal_protocol::messages::alter_user_scram_credentials_request::{
    ScramCredentialDeletion, ScramCredentialUpsertion,
};
use sha2::digest::common::BlockSizeUser;
use sha2::{Digest, Sha256, Sha512};

use crate::tools::Stop;

/// A kind of SCRAM credential.
#[derive(Debug)]
pub struct Mechanism {
    pub name: &'static str,
    pub id: i8,
    salted: fn(&[u8], &[u8], u32) -> Vec<u8>,
}

pub static MECHANISMS: [Mechanism; 2] = [
    Mechanism { name: "SCRAM-SHA-256", id: 1, salted: salted::<Sha256> },
    Mechanism { name: "SCRAM-SHA-512", id: 2, salted: salted::<Sha512> },
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
        salted_password: (mechanism.salted)(password.as_bytes(), &salt, count).into(),
        salt: salt.to_vec().into(),
    })
}

/// A key for a keyed hash (RFC 2104), with both of its pads taken in.
#[derive(Clone)]
struct Keyed<D> {
    inner: D,
    outer: D,
}

impl<D: Digest + BlockSizeUser> Keyed<D> {
    fn new(key: &[u8]) -> Keyed<D> {
        let mut block = if key.len() > D::block_size() { D::digest(key).to_vec() } else { key.to_vec() };
        block.resize(D::block_size(), 0);
        let pad = |with: u8| D::new_with_prefix(block.iter().map(|byte| byte ^ with).collect::<Vec<u8>>());
        Keyed { inner: pad(0x36), outer: pad(0x5c) }
    }
}

impl<D: Digest + BlockSizeUser + Clone> Keyed<D> {
    fn hash(&self, data: &[u8]) -> Vec<u8> {
        let inner = self.inner.clone().chain_update(data).finalize();
        self.outer.clone().chain_update(inner).finalize().to_vec()
    }
}

/// `Hi` of RFC 5802: PBKDF2 with one block.
fn salted<D: Digest + BlockSizeUser + Clone>(password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
    let key = Keyed::<D>::new(password);
    let mut last = key.hash(&[salt, &1_u32.to_be_bytes()].concat());
    let mut result = last.clone();
    for _ in 1..iterations {
        last = key.hash(&last);
        result.iter_mut().zip(&last).for_each(|(r, l)| *r ^= l);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        use std::fmt::Write as _;
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// The vectors of RFC 7914, section 11, and of RFC 4231, case 2.
    #[test]
    fn known_hashes() {
        assert!(hex(&salted::<Sha256>(b"passwd", b"salt", 1)).starts_with("55ac046e56e3089fec1691c22544b605"));
        assert!(hex(&salted::<Sha256>(b"Password", b"NaCl", 80_000)).starts_with("4ddcd8f60b98be21830cee5ef22701f9"));
        let found = hex(&Keyed::<Sha512>::new(b"Jefe").hash(b"what do ya want for nothing?"));
        assert!(found.starts_with("164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554"), "{found}");
    }

    #[test]
    fn credentials() {
        let set = |text: &str| {
            request("u", &[("SCRAM-SHA-512".to_owned(), Some(text.to_owned()))]).map_err(|e| e.to_string())
        };
        let found = set("iterations=8192,password=a,b").unwrap().upsertions.remove(0);
        assert_eq!((found.mechanism, found.iterations, found.salted_password.len()), (2, 8192, 64));
        assert_eq!(found.salted_password, salted::<Sha512>(b"a,b", &found.salt, 8192));
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
