//! The first controllers of a dynamic quorum: `id@host:port:directoryId`, separated by commas (KIP-853).

use caudal_protocol::Uuid;
use caudal_protocol::records::control::VotersRecord;

use super::FormatError;
use crate::log::single_voter;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialController {
    pub id: i32,
    pub host: String,
    pub port: u16,
    pub directory_id: Uuid,
}

impl InitialController {
    /// Reads the value of `--initial-controllers`.
    pub fn parse_list(text: &str) -> Result<Vec<InitialController>, FormatError> {
        let mut list: Vec<InitialController> = Vec::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let controller = parse(item).map_err(FormatError::Terse)?;
            if list.iter().any(|c| c.id == controller.id) {
                let message = format!("Node id {} was specified more than once.", controller.id);
                return Err(FormatError::Terse(message));
            }
            list.push(controller);
        }
        match list.is_empty() {
            true => Err(FormatError::Terse("No voters given.".to_owned())),
            false => Ok(list),
        }
    }
}

fn parse(text: &str) -> Result<InitialController, String> {
    let (id, rest) = text.split_once('@').ok_or("No @ found in dynamic voter string.")?;
    if id.is_empty() {
        return Err("Invalid @ at beginning of dynamic voter string.".to_owned());
    }
    let id: i32 = id.parse().map_err(|_| "Failed to parse node id in dynamic voter string.")?;
    if id < 0 {
        return Err(format!("Invalid negative node id {id} in dynamic voter string."));
    }
    if rest.is_empty() {
        return Err("No hostname found after node id.".to_owned());
    }
    let (host, rest) = match rest.strip_prefix('[') {
        Some(inner) => {
            inner.split_once(']').ok_or("Hostname began with left bracket, but no right bracket was found.")?
        }
        None => {
            let colon = rest.find(':').ok_or("No colon following hostname could be found.")?;
            rest.split_at(colon)
        }
    };
    let rest = rest.strip_prefix(':').ok_or("Port section must start with a colon.")?;
    let (port, directory_id) = rest.split_once(':').ok_or("No colon following port could be found.")?;
    let port: i64 = port.parse().map_err(|_| "Failed to parse port in dynamic voter string.")?;
    let port = u16::try_from(port).map_err(|_| format!("Invalid port {port} in dynamic voter string."))?;
    let directory_id = directory_id.parse().map_err(|_| "Failed to parse directory ID in dynamic voter string.")?;
    Ok(InitialController { id, host: host.to_owned(), port, directory_id })
}

/// The record that names them, by id.
pub(super) fn record(list: &[InitialController], listener: &str) -> VotersRecord {
    let mut sorted: Vec<&InitialController> = list.iter().collect();
    sorted.sort_by_key(|c| c.id);
    let one = |c: &InitialController| single_voter(c.id, c.directory_id, listener, &c.host, c.port).voters;
    VotersRecord { version: 0, voters: sorted.into_iter().flat_map(one).collect() }
}
