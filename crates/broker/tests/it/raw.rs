//! A client of plain sockets and hand-framed requests.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use caudal_broker::{Broker, BrokerConfig, StartError};
use caudal_cluster::controller::create_topics;
use caudal_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use caudal_protocol::messages::find_coordinator_request::FindCoordinatorRequest;
use caudal_protocol::messages::find_coordinator_response::FindCoordinatorResponse;
use caudal_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use caudal_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use caudal_protocol::messages::{
    CreateTopicsRequest, OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse,
};
use caudal_protocol::wire::{Message, Reader, Writer};
use caudal_protocol::{ApiKey, Uuid};
use caudal_storage::{Disk, RealDisk};
use tokio::runtime::Runtime;

/// A broker on a port of its own, with a runtime of its own.
pub struct TestBroker {
    broker: Option<Broker>,
    runtime: Option<Runtime>,
    dir: Option<tempfile::TempDir>,
}

impl TestBroker {
    pub fn start() -> TestBroker {
        TestBroker::start_with(|_| {})
    }

    pub fn start_with(change: impl FnOnce(&mut BrokerConfig)) -> TestBroker {
        TestBroker::start_in(tempfile::tempdir().unwrap(), change).unwrap()
    }

    pub fn start_in(dir: tempfile::TempDir, change: impl FnOnce(&mut BrokerConfig)) -> Result<TestBroker, StartError> {
        TestBroker::start_on(Arc::new(RealDisk), dir, change)
    }

    pub fn start_on(
        disk: Arc<dyn Disk>,
        dir: tempfile::TempDir,
        change: impl FnOnce(&mut BrokerConfig),
    ) -> Result<TestBroker, StartError> {
        let mut config = BrokerConfig::new(dir.path());
        config.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        change(&mut config);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let broker = runtime.block_on(Broker::start_on(config, disk))?;
        Ok(TestBroker { broker: Some(broker), runtime: Some(runtime), dir: Some(dir) })
    }

    /// Stops in an orderly way and starts again on the same data.
    pub fn restart(mut self) -> TestBroker {
        let dir = self.dir.take().unwrap();
        drop(self);
        TestBroker::start_in(dir, |_| {}).unwrap()
    }

    /// Goes away without a word and starts again on the same data.
    pub fn crash_and_restart(mut self) -> TestBroker {
        let dir = self.dir.take().unwrap();
        drop(self.broker.take());
        drop(self.runtime.take());
        drop(self);
        TestBroker::start_in(dir, |_| {}).unwrap()
    }

    /// The directory of a broker that is gone: stopped in an orderly way, or not.
    pub fn end(mut self, clean: bool) -> tempfile::TempDir {
        let dir = self.dir.take().unwrap();
        if !clean {
            drop(self.broker.take());
        }
        dir
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(future)
    }

    pub fn context(&self) -> &caudal_broker::context::Context {
        self.broker.as_ref().unwrap().context()
    }

    pub fn path(&self) -> &std::path::Path {
        self.dir.as_ref().unwrap().path()
    }

    /// Leaves the directory behind for another broker.
    pub fn keep_dir(&mut self) {
        let _ = self.dir.take().unwrap().keep();
    }

    pub fn addr(&self) -> SocketAddr {
        self.broker.as_ref().unwrap().local_addr().unwrap()
    }

    /// Creates a topic as CreateTopics does.
    pub fn create_topic(&self, name: &str, num_partitions: i32) {
        self.create_topic_with(name, num_partitions, &[]);
    }

    pub fn create_topic_with(&self, name: &str, num_partitions: i32, configs: &[(&str, &str)]) {
        let ctx = self.broker.as_ref().unwrap().context().clone();
        let config =
            |(name, value): &(&str, &str)| CreatableTopicConfig { name: (*name).into(), value: Some((*value).into()) };
        let topic = CreatableTopic {
            name: name.into(),
            num_partitions,
            replication_factor: 1,
            configs: configs.iter().map(config).collect(),
            ..Default::default()
        };
        let request = CreateTopicsRequest { topics: vec![topic], ..Default::default() };
        let created = self
            .runtime
            .as_ref()
            .unwrap()
            .block_on(ctx.metadata.change(|image| create_topics(image, &ctx.node(), &request)))
            .unwrap();
        assert_eq!(created.topics[0].error_code, 0, "{:?}", created.topics[0].error_message);
    }

    pub fn topic_id(&self, name: &str) -> Uuid {
        self.broker.as_ref().unwrap().context().topic_id(name).unwrap()
    }

    pub fn connect(&self) -> RawClient {
        RawClient::connect(self.addr())
    }
}

impl Drop for TestBroker {
    fn drop(&mut self) {
        if let (Some(broker), Some(runtime)) = (self.broker.take(), &self.runtime) {
            runtime.block_on(broker.shutdown());
        }
    }
}

pub struct RawClient {
    pub stream: TcpStream,
    next: i32,
}

impl RawClient {
    pub fn connect(addr: SocketAddr) -> RawClient {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        RawClient { stream, next: 0 }
    }

    /// From another address than the broker's, as from another machine.
    pub fn connect_from(own: [u8; 4], addr: SocketAddr) -> RawClient {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((own, 0)).into()).unwrap();
        socket.connect(&addr.into()).unwrap();
        RawClient { stream: socket.into(), next: 0 }
    }

    /// Sends a request; its correlation id.
    pub fn send<Q: Message>(&mut self, request: &Q, version: i16) -> i32 {
        let id = self.next;
        self.next += 1;
        self.stream.write_all(&frame(request, version, id)).unwrap();
        id
    }

    /// The next response of a request type; its correlation id and body.
    pub fn receive<S: Message>(&mut self, version: i16) -> (i32, S) {
        let mut reader = Reader::new(self.receive_frame().expect("the broker closed the connection"));
        let id = reader.i32().unwrap();
        let key = ApiKey::from_code(S::API_KEY).unwrap();
        if key.response_header_version(version) > 0 {
            reader
                .tags(|_, r| {
                    r.skip();
                    Ok(())
                })
                .unwrap();
        }
        let response = S::decode(&mut reader, version).unwrap();
        assert_eq!(reader.remaining(), 0, "bytes after the response");
        (id, response)
    }

    pub fn ask<Q: Message, S: Message>(&mut self, request: &Q, version: i16) -> S {
        let sent = self.send(request, version);
        let (id, response) = self.receive(version);
        assert_eq!(sent, id);
        response
    }

    /// Asks for the coordinator of a group, which makes the topic of groups.
    pub fn find_group(&mut self, group: &str) {
        let request = FindCoordinatorRequest { key: group.into(), ..Default::default() };
        let response: FindCoordinatorResponse = self.ask(&request, 3);
        assert_eq!(response.error_code, 0, "{:?}", response.error_message);
    }

    /// Commits an offset of partition 0 of `t` for the group `g`; the error code.
    pub fn commit(&mut self, offset: i64, metadata: &str) -> i16 {
        self.commit_as("g", offset, metadata)
    }

    pub fn commit_as(&mut self, group: &str, offset: i64, metadata: &str) -> i16 {
        let partition = OffsetCommitRequestPartition {
            committed_offset: offset,
            committed_metadata: Some(metadata.to_owned()),
            ..Default::default()
        };
        let topic = OffsetCommitRequestTopic { name: "t".into(), partitions: vec![partition], ..Default::default() };
        let request = OffsetCommitRequest {
            group_id: group.into(),
            generation_id_or_member_epoch: -1,
            topics: vec![topic],
            ..Default::default()
        };
        let response: OffsetCommitResponse = self.ask(&request, 8);
        response.topics[0].partitions[0].error_code
    }

    /// What [`RawClient::commit`] committed.
    pub fn committed(&mut self) -> i64 {
        let topic = OffsetFetchRequestTopic { name: "t".into(), partition_indexes: vec![0] };
        let request = OffsetFetchRequest { group_id: "g".into(), topics: Some(vec![topic]), ..Default::default() };
        let response: OffsetFetchResponse = self.ask(&request, 7);
        response.topics[0].partitions[0].committed_offset
    }

    /// A response without its length; `None`: closed.
    pub fn receive_frame(&mut self) -> Option<Bytes> {
        let mut length = [0; 4];
        match self.stream.read_exact(&mut length) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => panic!("no answer within the deadline"),
            Err(_) => return None,
        }
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut body).unwrap();
        Some(body.into())
    }
}

/// A request as it goes over the wire.
pub fn frame<Q: Message>(request: &Q, version: i16, correlation_id: i32) -> Vec<u8> {
    let key = ApiKey::from_code(Q::API_KEY).unwrap();
    let mut writer = Writer::new();
    writer.i16(Q::API_KEY);
    writer.i16(version);
    writer.i32(correlation_id);
    writer.string(false, "raw").unwrap();
    if key.request_header_version(version) > 1 {
        writer.uvarint(0);
    }
    request.encode(&mut writer, version).unwrap();
    let body = writer.finish().into_bytes().unwrap();
    let mut all = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    all.extend_from_slice(&body);
    all
}
