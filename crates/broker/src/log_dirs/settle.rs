//! What moves between directories leave when they are interrupted. Before the exchange the old log is the whole one, and the
//! copy beside is gone on with; between the renames of the exchange there are two logs that hold the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use caudal_cluster::MetadataImage;
use caudal_cluster::log::METADATA_TOPIC;
use caudal_protocol::{TopicPartition, Uuid};
use caudal_storage::{Log, OpenError};

use super::{Dir, LogDirs, started_without};
use crate::moves;

impl LogDirs {
    /// Sees to it that each partition has one log, and at most one on its way elsewhere. To be called once, before anything is
    /// created. A directory that cannot be read or written is offline from here on, as one that could not be opened.
    ///
    /// # Errors
    /// It is that of the metadata log, or no other one is left.
    pub fn settle_moves(&mut self, image: &MetadataImage, node_id: i32) -> Result<(), OpenError> {
        for (id, error) in self.settle(image, node_id) {
            let Some(place) = self.places.iter_mut().find(|place| place.as_ref().is_ok_and(|dir| dir.id == id)) else {
                continue;
            };
            if let Ok(dir) = place {
                if Arc::ptr_eq(&dir.log_dir, &self.metadata) {
                    return Err(error);
                }
                *place = Err(started_without(dir.path.clone(), &error));
            }
            if !self.is_any_in_use() {
                return Err(error);
            }
        }
        Ok(())
    }

    /// The directories that failed, and how.
    fn settle(&self, image: &MetadataImage, node_id: i32) -> BTreeMap<Uuid, OpenError> {
        let mut failed: BTreeMap<Uuid, OpenError> = BTreeMap::new();
        let place = |name: &TopicPartition| {
            let partition = image.partition(&name.topic, name.partition);
            partition.and_then(|partition| partition.directory_of(node_id))
        };
        let mut holders: BTreeMap<TopicPartition, Vec<(&Dir, Arc<Log>)>> = BTreeMap::new();
        for dir in self.iter() {
            for log in dir.log_dir.logs() {
                holders.entry(log.topic_partition().clone()).or_default().push((dir, log));
            }
        }
        holders.retain(|name, holders| holders.len() > 1 && name.topic != METADATA_TOPIC);
        for (name, mut holders) in holders {
            // What lies in one that failed is not there, and may be the newer one.
            if holders.iter().any(|(dir, _)| failed.contains_key(&dir.id)) {
                continue;
            }
            let topic = image.topic(&name.topic).map(|topic| topic.id);
            let settled = set_others_aside(&name, topic, &mut holders);
            if let Err((id, error)) = settled.and_then(|()| keep_one(&name, place(&name), &mut holders)) {
                failed.insert(id, error);
            }
        }
        for dir in self.iter() {
            let futures = match dir.log_dir.left_futures() {
                Ok(futures) if !failed.contains_key(&dir.id) => futures,
                Ok(_) => continue,
                Err(error) => {
                    failed.entry(dir.id).or_insert(error);
                    continue;
                }
            };
            for (name, left) in futures {
                let Some(topic) = image.topic(&name.topic) else {
                    dir.log_dir.remove_left(&left);
                    continue;
                };
                if let Err(error) = self.settle_future(dir, &name, &left, (topic.id, place(&name))) {
                    failed.insert(dir.id, error);
                    break;
                }
            }
        }
        failed
    }

    /// A log on its way to `dir` is gone on with if it is a part of the log; without one it takes its place if it was whole, which
    /// Kafka notes in the metadata before it exchanges them.
    fn settle_future(
        &self,
        dir: &Dir,
        name: &TopicPartition,
        left: &Path,
        (topic, place): (Uuid, Option<Uuid>),
    ) -> Result<(), OpenError> {
        let whole = self.iter().find_map(|dir| dir.log_dir.log(name));
        let to = dir.path.display();
        let opened = dir.log_dir.open_left(name.clone(), left);
        let is_second = || {
            let mut others = self.iter().filter(|other| other.id != dir.id);
            others.any(|other| other.log_dir.futures().iter().any(|log| log.topic_partition() == name))
        };
        let future = match (opened, &whole) {
            (Ok(future), _) => future,
            (Err(error), None) => {
                tracing::error!(partition = %name, "a log that was on its way to {to} cannot be opened: {error}");
                return Ok(());
            }
            (Err(error), Some(whole)) => {
                tracing::warn!(partition = %name, "what was copied to {to} cannot be opened: {error}");
                dir.log_dir.remove_left(left);
                if !is_second() {
                    copy_anew(whole, dir);
                }
                return Ok(());
            }
        };
        let is_another = future.topic_id().is_some_and(|id| id != topic);
        match whole {
            _ if is_another || dir.log_dir.log(name).is_some() => dir.log_dir.abandon_future(&future),
            Some(_) if is_second() => dir.log_dir.abandon_future(&future),
            Some(whole) if begins_with(&whole, &future) => {
                // Until the move is at its end.
                whole.pause_cleaning();
                tracing::info!(partition = %name, %to, copied = future.log_end_offset(), "a move was interrupted and goes on");
            }
            Some(whole) => {
                dir.log_dir.abandon_future(&future);
                copy_anew(&whole, dir);
            }
            None if place.map_or(self.unopened().next().is_none(), |place| place == dir.id) => {
                dir.log_dir.adopt_future(&future, None)?;
                tracing::info!(partition = %name, %to, "finished a move that was interrupted");
            }
            // The log is in a directory that is not there.
            None => {}
        }
        Ok(())
    }
}

/// What is there of a copy is none of the log.
fn copy_anew(whole: &Log, dir: &Dir) {
    let (partition, to) = (whole.topic_partition(), dir.path.display());
    match dir.log_dir.create_future(moves::copy_of(whole), whole.log_start_offset()) {
        Ok(_) => {
            whole.pause_cleaning();
            tracing::info!(%partition, %to, "a move was interrupted and begins anew");
        }
        Err(error) => tracing::error!(%partition, %to, "a move was interrupted and does not go on: {error}"),
    }
}

/// Whether one log is a part of another, from its start on, which may have moved up since.
fn begins_with(whole: &Log, part: &Log) -> bool {
    part.log_start_offset() <= whole.log_start_offset() && whole.covers(part)
}

/// A topic of that name was deleted and made anew while one of the directories was away.
fn set_others_aside(
    name: &TopicPartition,
    topic: Option<Uuid>,
    holders: &mut Vec<(&Dir, Arc<Log>)>,
) -> Result<(), (Uuid, OpenError)> {
    let is_another = |log: &Log| topic.is_some() && log.topic_id().is_some() && log.topic_id() != topic;
    if holders.iter().all(|(_, log)| is_another(log)) {
        return Ok(());
    }
    for (dir, _) in holders.extract_if(.., |(_, log)| is_another(log)) {
        let away = dir.log_dir.set_aside(name).map_err(|error| (dir.id, error))?;
        tracing::warn!(
            partition = %name, dir = %away.display(),
            "a log of an earlier topic of that name was set aside; it can be removed if nobody misses that topic"
        );
    }
    Ok(())
}

/// The longest log stays, or the one that the metadata names (`place`) where they are equally long. Others go if it holds all
/// they hold; where it does not, the one that the metadata names stays, and the others are kept under another name.
fn keep_one(
    name: &TopicPartition,
    place: Option<Uuid>,
    holders: &mut Vec<(&Dir, Arc<Log>)>,
) -> Result<(), (Uuid, OpenError)> {
    let is_named = |dir: &Dir| place == Some(dir.id);
    holders.sort_by_key(|(dir, log)| (log.log_end_offset(), is_named(dir)));
    let Some((mut kept, longest)) = holders.pop() else { return Ok(()) };
    let mut differ: Vec<&Dir> = Vec::new();
    for (dir, log) in holders.drain(..) {
        if longest.log_start_offset() <= log.log_start_offset() && longest.covers(&log) {
            dir.log_dir.delete_log(name).map_err(|error| (dir.id, error))?;
            tracing::info!(
                partition = %name, kept = %kept.path.display(), removed_from = %dir.path.display(),
                "a move was interrupted when it was done"
            );
        } else {
            differ.push(dir);
        }
    }
    if let Some(named) = differ.iter_mut().find(|dir| is_named(dir)) {
        std::mem::swap(&mut kept, named);
    }
    for dir in differ {
        let away = dir.log_dir.set_aside(name).map_err(|error| (dir.id, error))?;
        tracing::warn!(
            partition = %name, kept = %kept.path.display(), dir = %away.display(),
            "two directories hold different logs of the partition: one was set aside. Look before you delete it"
        );
    }
    Ok(())
}
