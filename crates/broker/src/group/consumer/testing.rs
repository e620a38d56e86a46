//! Metadata images for tests.

use caudal_cluster::MetadataImage;
use caudal_cluster::record::MetadataRecord;
use caudal_protocol::Uuid;
use caudal_protocol::records::metadata::{PartitionRecord, RemoveTopicRecord, TopicRecord};

/// The id that a topic has in these images.
pub fn topic_id(name: &str) -> Uuid {
    let mut id = [0x40; 16];
    for (to, from) in id.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    Uuid(id)
}

/// Topics with as many partitions, on broker 1.
pub fn image(topics: &[(&str, i32)]) -> MetadataImage {
    let mut image = MetadataImage::empty();
    for (name, partitions) in topics {
        grow(&mut image, name, *partitions);
    }
    image
}

fn apply(image: &mut MetadataImage, record: impl Into<MetadataRecord>) {
    image.apply(&record.into()).unwrap();
    image.offset += 1;
}

/// Creates a topic, or gives it more partitions.
pub fn grow(image: &mut MetadataImage, name: &str, partitions: i32) {
    let topic_id = topic_id(name);
    if image.topic(name).is_none() {
        apply(image, TopicRecord { name: name.into(), topic_id });
    }
    let from = image.topic(name).unwrap().partition_count();
    for partition_id in from..partitions {
        let record = PartitionRecord {
            partition_id,
            topic_id,
            replicas: vec![1],
            isr: vec![1],
            leader: 1,
            directories: vec![Uuid([7; 16])],
            ..PartitionRecord::default()
        };
        apply(image, record);
    }
}

/// Deletes a topic.
pub fn remove(image: &mut MetadataImage, name: &str) {
    apply(image, RemoveTopicRecord { topic_id: topic_id(name) });
}
