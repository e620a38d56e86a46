use caudal_protocol::Uuid;
use caudal_protocol::records::metadata::*;
use proptest::prelude::*;

use super::*;
use crate::record::MetadataRecord;

/// Steps that are always valid for the image they are applied to.
#[derive(Debug, Clone)]
enum Step {
    Topic(u8, u8),
    Remove(u8),
    Change(u8, u8, i32),
    Config(u8, u8, Option<u8>),
    Feature(u8, i16),
    Broker(i32, bool),
    Fence(i32, i8),
    ProducerIds(i64),
    Quota(u8, f64, bool),
    Acl(u8, bool),
    Scram(u8, i8, bool),
    Token(u8, bool),
    ClientMetrics(u8, Option<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..6, 1u8..4).prop_map(|(t, p)| Step::Topic(t, p)),
        (0u8..6).prop_map(Step::Remove),
        (0u8..6, 0u8..4, -2i32..3).prop_map(|(t, p, l)| Step::Change(t, p, l)),
        (0u8..6, 0u8..4, proptest::option::of(0u8..9)).prop_map(|(t, k, v)| Step::Config(t, k, v)),
        (0u8..3, 0i16..3).prop_map(|(f, l)| Step::Feature(f, l)),
        (0i32..3, any::<bool>()).prop_map(|(b, f)| Step::Broker(b, f)),
        (0i32..3, -1i8..2).prop_map(|(b, f)| Step::Fence(b, f)),
        (0i64..5).prop_map(|n| Step::ProducerIds(n * 1000)),
        (0u8..3, 0.0f64..9.0, any::<bool>()).prop_map(|(u, v, r)| Step::Quota(u, v, r)),
        (0u8..3, any::<bool>()).prop_map(|(a, r)| Step::Acl(a, r)),
        (0u8..3, 1i8..3, any::<bool>()).prop_map(|(u, m, r)| Step::Scram(u, m, r)),
        (0u8..3, any::<bool>()).prop_map(|(t, r)| Step::Token(t, r)),
        (0u8..3, proptest::option::of(0u8..9)).prop_map(|(s, v)| Step::ClientMetrics(s, v)),
    ]
}

fn records(image: &MetadataImage, step: &Step, id: u8) -> Vec<MetadataRecord> {
    let topic_name = |t: u8| format!("topic-{t}");
    match step {
        Step::Topic(t, partitions) => {
            if image.topic(&topic_name(*t)).is_some() {
                return Vec::new();
            }
            let topic_id = Uuid([id; 16]);
            if image.topic_by_id(&topic_id).is_some() {
                return Vec::new();
            }
            let mut out = vec![TopicRecord { name: topic_name(*t), topic_id }.into()];
            out.extend((0..*partitions).map(|p| {
                MetadataRecord::Partition(PartitionRecord {
                    partition_id: i32::from(p),
                    topic_id,
                    replicas: vec![1],
                    isr: vec![1],
                    leader: 1,
                    leader_epoch: 0,
                    partition_epoch: 0,
                    directories: vec![Uuid([7; 16])],
                    ..PartitionRecord::default()
                })
            }));
            out
        }
        Step::Remove(t) => image
            .topic(&topic_name(*t))
            .map(|topic| RemoveTopicRecord { topic_id: topic.id }.into())
            .into_iter()
            .collect(),
        Step::Change(t, p, leader) => image
            .topic(&topic_name(*t))
            .filter(|topic| topic.partitions.contains_key(&i32::from(*p)))
            .map(|topic| {
                MetadataRecord::PartitionChange(PartitionChangeRecord {
                    partition_id: i32::from(*p),
                    topic_id: topic.id,
                    leader: *leader,
                    isr: (*leader == -1).then(Vec::new),
                    eligible_leader_replicas: (*leader == -1).then(|| vec![1]),
                    ..PartitionChangeRecord::default()
                })
            })
            .into_iter()
            .collect(),
        Step::Config(t, key, value) => vec![
            ConfigRecord {
                resource_type: if *t == 0 { 4 } else { 2 },
                resource_name: if *t == 0 { String::new() } else { topic_name(*t) },
                name: format!("key-{key}"),
                value: value.map(|v| v.to_string()),
            }
            .into(),
        ],
        Step::Feature(f, level) => {
            let name = if *f == 0 { "metadata.version".to_owned() } else { format!("feature-{f}") };
            vec![FeatureLevelRecord { name, feature_level: *level }.into()]
        }
        Step::Broker(broker_id, fenced) => vec![
            RegisterBrokerRecord { broker_id: *broker_id, fenced: *fenced, ..RegisterBrokerRecord::default() }.into(),
        ],
        Step::Fence(broker_id, fenced) => image
            .broker(*broker_id)
            .map(|b| {
                MetadataRecord::BrokerRegistrationChange(BrokerRegistrationChangeRecord {
                    broker_id: *broker_id,
                    broker_epoch: b.broker_epoch,
                    fenced: *fenced,
                    ..BrokerRegistrationChangeRecord::default()
                })
            })
            .into_iter()
            .collect(),
        Step::ProducerIds(next) => {
            vec![ProducerIdsRecord { broker_id: 1, broker_epoch: 3, next_producer_id: *next }.into()]
        }
        Step::Quota(user, value, remove) => {
            let part = |entity_type: &str| client_quota_record::EntityData {
                entity_type: entity_type.into(),
                entity_name: (*user > 0).then(|| format!("{entity_type}-{user}")),
            };
            let entity = match user {
                2 => vec![part("user"), part("client-id")],
                _ => vec![part("user")],
            };
            let key = "producer_byte_rate".into();
            vec![ClientQuotaRecord { entity, key, value: *value, remove: *remove }.into()]
        }
        Step::Acl(a, remove) => {
            let id = Uuid([*a; 16]);
            if *remove {
                return vec![RemoveAccessControlEntryRecord { id }.into()];
            }
            vec![AccessControlEntryRecord { id, principal: "User:a".into(), ..Default::default() }.into()]
        }
        Step::Scram(user, mechanism, remove) => {
            let (name, mechanism) = (format!("user-{user}"), *mechanism);
            if *remove {
                return vec![RemoveUserScramCredentialRecord { name, mechanism }.into()];
            }
            vec![UserScramCredentialRecord { name, mechanism, iterations: 4096, ..Default::default() }.into()]
        }
        Step::Token(token, remove) => {
            let token_id = format!("token-{token}");
            if *remove {
                return vec![RemoveDelegationTokenRecord { token_id }.into()];
            }
            vec![DelegationTokenRecord { token_id, owner: "User:a".into(), ..Default::default() }.into()]
        }
        Step::ClientMetrics(name, value) => vec![
            ConfigRecord {
                resource_type: 16,
                resource_name: format!("subscription-{name}"),
                name: "interval.ms".into(),
                value: value.map(|v| v.to_string()),
            }
            .into(),
        ],
    }
}

fn apply_all(image: &mut MetadataImage, records: &[MetadataRecord]) {
    for record in records {
        let value = record.encode().unwrap();
        let read_back = MetadataRecord::decode(value).unwrap();
        assert_eq!(&read_back, record);
        image.apply(&read_back).unwrap();
    }
}

proptest! {
    #[test]
    fn a_snapshot_replayed_is_the_image(steps in prop::collection::vec(step(), 0..60)) {
        let mut image = MetadataImage::empty();
        for (i, step) in steps.iter().enumerate() {
            let records = records(&image, step, u8::try_from(i).unwrap() + 10);
            apply_all(&mut image, &records);
        }
        let mut again = MetadataImage::empty();
        apply_all(&mut again, &image.to_records());
        prop_assert_eq!(again, image);
    }

    #[test]
    fn a_clone_keeps_what_it_saw(steps in prop::collection::vec(step(), 1..30)) {
        let mut image = MetadataImage::empty();
        let mut seen = Vec::new();
        for (i, step) in steps.iter().enumerate() {
            let records = records(&image, step, u8::try_from(i).unwrap() + 10);
            seen.push((image.clone(), image.to_records()));
            apply_all(&mut image, &records);
        }
        for (earlier, records) in seen {
            prop_assert_eq!(earlier.to_records(), records);
        }
    }
}

#[test]
fn records_that_do_not_fit_are_refused() {
    let mut image = MetadataImage::empty();
    let id = Uuid([1; 16]);
    let remove: MetadataRecord = RemoveTopicRecord { topic_id: id }.into();
    assert_eq!(image.apply(&remove), Err(ApplyError::NoTopic { record: "RemoveTopicRecord", id }));
    let fence: MetadataRecord = FenceBrokerRecord { id: 1, epoch: 2 }.into();
    assert_eq!(image.apply(&fence), Err(ApplyError::NoBroker { record: "FenceBrokerRecord", id: 1, epoch: 2 }));
    let begin: MetadataRecord = BeginTransactionRecord::default().into();
    assert_eq!(image.apply(&begin), Err(ApplyError::Transaction("BeginTransactionRecord")));
    assert_eq!(image, MetadataImage::empty());
}
