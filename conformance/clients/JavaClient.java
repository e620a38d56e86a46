// The Java client against a broker. java -cp KAFKA_LIBS/* JavaClient.java BOOTSTRAP; closes with "N passed, N failed".
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.RecordTooLargeException;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.*;

public class JavaClient {
    static String bootstrap;
    interface Case { void run() throws Exception; }

    static Map<String, Object> base() { return new HashMap<>(Map.of("bootstrap.servers", bootstrap)); }

    static String topic(int partitions) throws Exception {
        String name = "java-" + UUID.randomUUID().toString().substring(0, 8);
        try (Admin admin = Admin.create(base())) {
            admin.createTopics(List.of(new NewTopic(name, partitions, (short) 1))).all().get(30, TimeUnit.SECONDS);
        }
        return name;
    }

    static KafkaProducer<byte[], byte[]> producer(Map<String, Object> more) {
        Map<String, Object> config = base();
        config.putAll(more);
        return new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer());
    }

    static KafkaConsumer<byte[], byte[]> consumer(String group, Map<String, Object> more) {
        Map<String, Object> config = base();
        config.putAll(Map.of("auto.offset.reset", "earliest", "enable.auto.commit", false, "session.timeout.ms", 6000, "heartbeat.interval.ms", 500));
        if (group != null) config.put("group.id", group);
        config.putAll(more);
        return new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    static void check(boolean holds, String what) { if (!holds) throw new AssertionError(what); }

    static byte[] bytes(String s) { return s == null ? null : s.getBytes(StandardCharsets.UTF_8); }

    static List<ConsumerRecord<byte[], byte[]>> read(Consumer<byte[], byte[]> c, int n) {
        List<ConsumerRecord<byte[], byte[]>> found = new ArrayList<>();
        long end = System.nanoTime() + 30_000_000_000L;
        while (found.size() < n && System.nanoTime() < end) c.poll(Duration.ofMillis(200)).forEach(found::add);
        check(found.size() >= n, "read " + found.size() + " of " + n);
        return found;
    }

    static void roundTrips() throws Exception {
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            String name = topic(1);
            List<ProducerRecord<byte[], byte[]>> sent = new ArrayList<>();
            String[][] pairs = {{"k", "v"}, {null, "no key"}, {"no value", null}, {null, null}, {"", ""}, {"ñ", "café".repeat(500)}};
            for (int i = 0; i < pairs.length; i++) {
                var record = new ProducerRecord<>(name, 0, 1_700_000_000_000L + i, bytes(pairs[i][0]), bytes(pairs[i][1]));
                record.headers().add(new RecordHeader("same", bytes("1"))).add(new RecordHeader("same", bytes("2"))).add(new RecordHeader("null", (byte[]) null));
                sent.add(record);
            }
            try (var p = producer(Map.of("compression.type", codec, "linger.ms", 20))) {
                List<Future<RecordMetadata>> futures = new ArrayList<>();
                for (var r : sent) futures.add(p.send(r));
                for (int i = 0; i < futures.size(); i++) check(futures.get(i).get().offset() == i, "offset");
            }
            try (var c = consumer(null, Map.of())) {
                c.assign(List.of(new TopicPartition(name, 0)));
                var found = read(c, sent.size());
                for (int i = 0; i < sent.size(); i++) {
                    var a = sent.get(i);
                    var b = found.get(i);
                    check(Arrays.equals(a.key(), b.key()) && Arrays.equals(a.value(), b.value()) && a.timestamp() == b.timestamp(), codec + " record " + i);
                    check(Arrays.equals(a.headers().toArray(), b.headers().toArray()), codec + " headers " + i);
                }
            }
        }
    }

    static void tooLarge() throws Exception {
        String name = topic(1);
        try (var p = producer(Map.of("max.request.size", 5_000_000))) {
            try {
                p.send(new ProducerRecord<>(name, new byte[2_000_000])).get();
                check(false, "taken");
            } catch (ExecutionException e) {
                check(e.getCause() instanceof RecordTooLargeException, "wrong error: " + e.getCause());
            }
            p.send(new ProducerRecord<>(name, new byte[1_000_000])).get();
        }
    }

    static void groupsMoveAndResume() throws Exception {
        for (String assignor : List.of("org.apache.kafka.clients.consumer.RangeAssignor", "org.apache.kafka.clients.consumer.CooperativeStickyAssignor")) {
            String name = topic(6), group = "g-" + UUID.randomUUID();
            try (var p = producer(Map.of())) {
                for (int i = 0; i < 60; i++) p.send(new ProducerRecord<>(name, i % 6, bytes("k"), bytes("" + i)));
            }
            Map<String, Object> more = Map.of("partition.assignment.strategy", assignor);
            List<KafkaConsumer<byte[], byte[]>> members = new ArrayList<>();
            Set<String> seen = new HashSet<>();
            for (int i = 0; i < 3; i++) members.add(consumer(group, more));
            for (var m : members) m.subscribe(List.of(name));
            settle(members, 6, seen);
            members.remove(2).close();
            settle(members, 6, seen);
            // One falls silent: no poll, no heartbeat, no goodbye.
            var dead = members.remove(1);
            dead.wakeup();
            dead.close(CloseOptions.groupMembershipOperation(CloseOptions.GroupMembershipOperation.REMAIN_IN_GROUP).withTimeout(Duration.ZERO));
            settle(members, 6, seen);
            // What it took over last it may have yet to read: committed is how far it has come.
            var last = members.get(0);
            long end = System.nanoTime() + 60_000_000_000L;
            while (!last.assignment().stream().allMatch(tp -> last.position(tp) == 10)) {
                check(System.nanoTime() < end, "it does not read to the end");
                for (var r : last.poll(Duration.ofMillis(100))) seen.add(r.partition() + ":" + r.offset());
            }
            check(seen.size() == 60, "seen " + seen.size());
            last.commitSync();
            last.close();
            try (var c = consumer(group, more)) {
                for (int p = 0; p < 6; p++) {
                    var tp = new TopicPartition(name, p);
                    check(c.committed(Set.of(tp)).get(tp).offset() == 10, "committed");
                }
            }
        }
    }

    /** Sessions of a group of the consumer protocol are the group's, not the client's. */
    static void quick(String group) throws Exception {
        var set = AlterConfigOp.OpType.SET;
        List<AlterConfigOp> ops = new ArrayList<>();
        Map.of("consumer.session.timeout.ms", "4000", "consumer.heartbeat.interval.ms", "500", "consumer.assignment.interval.ms", "0")
            .forEach((k, v) -> ops.add(new AlterConfigOp(new ConfigEntry(k, v), set)));
        try (Admin admin = Admin.create(base())) {
            admin.incrementalAlterConfigs(Map.of(new ConfigResource(ConfigResource.Type.GROUP, group), ops)).all().get(30, TimeUnit.SECONDS);
        }
    }

    static KafkaConsumer<byte[], byte[]> modern(String group, Map<String, Object> more) {
        Map<String, Object> config = base();
        config.putAll(Map.of("auto.offset.reset", "earliest", "enable.auto.commit", false, "group.id", group, "group.protocol", "consumer"));
        config.putAll(more);
        return new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    static String groupType(String group) throws Exception {
        try (Admin admin = Admin.create(base())) {
            for (var g : admin.listGroups().all().get(30, TimeUnit.SECONDS)) if (g.groupId().equals(group)) return g.type().get().toString();
        }
        return "none";
    }

    static void consumerProtocolGroups() throws Exception {
        for (String assignor : List.of("uniform", "range")) {
            String name = topic(6), group = "g-" + UUID.randomUUID();
            quick(group);
            try (var p = producer(Map.of())) {
                for (int i = 0; i < 60; i++) p.send(new ProducerRecord<>(name, i % 6, bytes("k"), bytes("" + i)));
            }
            Map<String, Object> more = Map.of("group.remote.assignor", assignor);
            List<KafkaConsumer<byte[], byte[]>> members = new ArrayList<>();
            Set<String> seen = new HashSet<>();
            for (int i = 0; i < 3; i++) members.add(modern(group, more));
            for (var m : members) m.subscribe(List.of(name));
            settle(members, 6, seen);
            for (var m : members) check(m.assignment().size() == 2, "shares of " + assignor + ": " + m.assignment());
            try (Admin admin = Admin.create(base())) {
                var described = admin.describeConsumerGroups(List.of(group)).all().get(30, TimeUnit.SECONDS).get(group);
                check(described.type() == GroupType.CONSUMER && described.partitionAssignor().equals(assignor) && described.members().size() == 3, described.toString());
            }
            for (var m : members) m.commitSync();
            members.remove(2).close();
            settle(members, 6, seen);
            var dead = members.remove(1);
            dead.close(CloseOptions.groupMembershipOperation(CloseOptions.GroupMembershipOperation.REMAIN_IN_GROUP).withTimeout(Duration.ZERO));
            settle(members, 6, seen);
            // What the first one read alone was read again by those who took over.
            var last = members.get(0);
            long end = System.nanoTime() + 30_000_000_000L;
            while (!last.assignment().stream().allMatch(tp -> last.position(tp) == 10)) {
                check(System.nanoTime() < end, "not read to the end");
                last.poll(Duration.ofMillis(100)).forEach(r -> seen.add(r.partition() + ":" + r.offset()));
            }
            check(seen.size() == 60, "seen " + seen.size());
            last.commitSync();
            last.close();
            try (Admin admin = Admin.create(base())) {
                var offsets = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get(30, TimeUnit.SECONDS);
                check(offsets.size() == 6 && offsets.values().stream().allMatch(o -> o.offset() == 10), offsets.toString());
                admin.deleteConsumerGroups(List.of(group)).all().get(30, TimeUnit.SECONDS);
            }
            check(groupType(group).equals("none"), "deleted");
        }
    }

    static void staticMembersOfTheConsumerProtocol() throws Exception {
        String name = topic(4), group = "g-" + UUID.randomUUID();
        quick(group);
        List<KafkaConsumer<byte[], byte[]>> members = new ArrayList<>();
        for (int i = 0; i < 2; i++) {
            members.add(modern(group, Map.of("group.instance.id", "i" + i)));
            members.get(i).subscribe(List.of(name));
        }
        Set<String> seen = new HashSet<>();
        settle(members, 4, seen);
        Set<TopicPartition> had = members.get(1).assignment();
        members.remove(1).close();
        var back = modern(group, Map.of("group.instance.id", "i1"));
        back.subscribe(List.of(name));
        members.add(back);
        settle(members, 4, seen);
        check(back.assignment().equals(had), "had " + had + ", has " + back.assignment());
        for (var m : members) m.close();
    }

    static void subscriptionByExpression() throws Exception {
        String prefix = "java-x" + UUID.randomUUID().toString().substring(0, 6), group = "g-" + UUID.randomUUID();
        quick(group);
        try (Admin admin = Admin.create(base()); var c = modern(group, Map.of())) {
            admin.createTopics(List.of(new NewTopic(prefix + "-1", 2, (short) 1))).all().get(30, TimeUnit.SECONDS);
            c.subscribe(new SubscriptionPattern(prefix + "-[0-9]"));
            settle(List.of(c), 2, new HashSet<>());
            admin.createTopics(List.of(new NewTopic(prefix + "-2", 1, (short) 1), new NewTopic(prefix + "-x", 1, (short) 1))).all().get(30, TimeUnit.SECONDS);
            settle(List.of(c), 3, new HashSet<>());
        }
    }

    /** Members of both protocols in one group, which changes over to the new one and back while it is in use. */
    static void groupsChangeOver() throws Exception {
        String name = topic(6), group = "g-" + UUID.randomUUID();
        quick(group);
        Map<String, Object> classic = Map.of("partition.assignment.strategy", "org.apache.kafka.clients.consumer.CooperativeStickyAssignor");
        List<KafkaConsumer<byte[], byte[]>> members = new ArrayList<>();
        Set<String> seen = new HashSet<>();
        for (int i = 0; i < 2; i++) members.add(consumer(group, classic));
        for (var m : members) m.subscribe(List.of(name));
        settle(members, 6, seen);
        check(groupType(group).equals("Classic"), groupType(group));
        try (var p = producer(Map.of())) {
            for (int i = 0; i < 60; i++) p.send(new ProducerRecord<>(name, i % 6, bytes("k"), bytes("" + i)));
        }
        members.add(modern(group, Map.of()));
        members.get(2).subscribe(List.of(name));
        settle(members, 6, seen);
        check(groupType(group).equals("Consumer"), groupType(group));
        for (var m : members) {
            check(m.assignment().size() == 2, "shares: " + m.assignment());
            m.commitSync();
        }
        members.remove(2).close();
        check(groupType(group).equals("Classic"), groupType(group));
        settle(members, 6, seen);
        check(seen.size() == 60, "seen " + seen.size());
        for (var m : members) m.close();
    }

    static void settle(List<KafkaConsumer<byte[], byte[]>> members, int partitions, Set<String> seen) {
        long end = System.nanoTime() + 60_000_000_000L;
        while (true) {
            check(System.nanoTime() < end, "the group did not settle");
            Set<TopicPartition> all = new HashSet<>();
            int sum = 0;
            for (var m : members) {
                for (var r : m.poll(Duration.ofMillis(100))) seen.add(r.partition() + ":" + r.offset());
                all.addAll(m.assignment());
                sum += m.assignment().size();
            }
            boolean everybody = members.stream().noneMatch(m -> m.assignment().isEmpty());
            if (everybody && sum == partitions && all.size() == partitions) {
                for (var m : members) {
                    try { m.commitSync(); } catch (CommitFailedException | org.apache.kafka.common.errors.RebalanceInProgressException e) { everybody = false; }
                }
                if (everybody) return;
            }
        }
    }

    static void replay() throws Exception {
        String name = topic(1);
        try (var p = producer(Map.of())) {
            for (int i = 0; i < 100; i++) p.send(new ProducerRecord<>(name, 0, 1_700_000_000_000L + i * 1000, null, bytes("" + i)));
        }
        var tp = new TopicPartition(name, 0);
        try (var c = consumer(null, Map.of("max.poll.records", 1))) {
            c.assign(List.of(tp));
            var at = c.offsetsForTimes(Map.of(tp, 1_700_000_041_500L)).get(tp);
            check(at.offset() == 42 && at.timestamp() == 1_700_000_042_000L, "by time: " + at);
            for (long offset : new long[] {0, 57, 99, at.offset()}) {
                c.seek(tp, offset);
                check(read(c, 1).get(0).offset() == offset, "replay from " + offset);
            }
            check(c.beginningOffsets(List.of(tp)).get(tp) == 0 && c.endOffsets(List.of(tp)).get(tp) == 100, "ends");
        }
    }

    static void administration() throws Exception {
        String name = topic(2);
        try (Admin admin = Admin.create(base())) {
            check(admin.describeTopics(List.of(name)).allTopicNames().get().get(name).partitions().size() == 2, "partitions");
            admin.createPartitions(Map.of(name, NewPartitions.increaseTo(5))).all().get();
            check(admin.describeTopics(List.of(name)).allTopicNames().get().get(name).partitions().size() == 5, "more partitions");
            check(admin.describeCluster().nodes().get().size() >= 1 && admin.describeCluster().clusterId().get().length() == 22, "cluster");
            admin.deleteTopics(List.of(name)).all().get();
            long end = System.nanoTime() + 10_000_000_000L;
            while (admin.listTopics().names().get().contains(name)) check(System.nanoTime() < end, "still listed");
        }
    }

    public static void main(String[] args) {
        bootstrap = args[0];
        Map<String, Case> cases = new LinkedHashMap<>();
        cases.put("roundTrips", JavaClient::roundTrips);
        cases.put("tooLarge", JavaClient::tooLarge);
        cases.put("replay", JavaClient::replay);
        cases.put("administration", JavaClient::administration);
        cases.put("groupsMoveAndResume", JavaClient::groupsMoveAndResume);
        cases.put("consumerProtocolGroups", JavaClient::consumerProtocolGroups);
        cases.put("staticMembersOfTheConsumerProtocol", JavaClient::staticMembersOfTheConsumerProtocol);
        cases.put("subscriptionByExpression", JavaClient::subscriptionByExpression);
        cases.put("groupsChangeOver", JavaClient::groupsChangeOver);
        if (args.length > 1) cases.keySet().removeIf(name -> !name.contains(args[1]));
        int failed = 0;
        for (var c : cases.entrySet()) {
            try {
                c.getValue().run();
                System.out.println("ok   " + c.getKey());
            } catch (Throwable e) {
                failed++;
                System.out.println("FAIL " + c.getKey());
                e.printStackTrace(System.out);
            }
        }
        System.out.println((cases.size() - failed) + " passed, " + failed + " failed");
        System.exit(failed == 0 ? 0 : 1);
    }
}
