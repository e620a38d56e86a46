// Sarama against a broker; see ../common.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/IBM/sarama"

	. "caudal/conformance/programs/common"
)

var (
	bootstrap = []string{os.Args[1]}
	codecs    = map[string]sarama.CompressionCodec{"none": sarama.CompressionNone, "gzip": sarama.CompressionGZIP, "snappy": sarama.CompressionSnappy,
		"lz4": sarama.CompressionLZ4, "zstd": sarama.CompressionZSTD}
)

func config(changes ...func(*sarama.Config)) *sarama.Config {
	c := sarama.NewConfig()
	c.Version = sarama.MaxVersion
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Producer.Return.Successes = true
	c.Consumer.Offsets.Initial = sarama.OffsetOldest
	c.Metadata.Retry.Max, c.Metadata.Retry.Backoff = 600, 100*time.Millisecond
	for _, change := range changes {
		change(c)
	}
	return c
}

func admin() sarama.ClusterAdmin {
	a, err := sarama.NewClusterAdmin(bootstrap, config())
	Must(err)
	return a
}

func create(name string, partitions int32, entries map[string]*string) string {
	a := admin()
	defer a.Close()
	Must(a.CreateTopic(name, &sarama.TopicDetail{NumPartitions: partitions, ReplicationFactor: 1, ConfigEntries: entries}, false))
	return name
}

func producer(changes ...func(*sarama.Config)) sarama.SyncProducer {
	p, err := sarama.NewSyncProducer(bootstrap, config(changes...))
	Must(err)
	return p
}

// everything reads a topic of one partition up to its end now; a marker at the end is no record, so the last record is written first.
func everything(topic string, level sarama.IsolationLevel) []*sarama.ConsumerMessage {
	client, err := sarama.NewClient(bootstrap, config(func(c *sarama.Config) { c.Consumer.IsolationLevel = level }))
	Must(err)
	defer client.Close()
	start, err := client.GetOffset(topic, 0, sarama.OffsetOldest)
	Must(err)
	end, err := client.GetOffset(topic, 0, sarama.OffsetNewest)
	Must(err)
	consumer, err := sarama.NewConsumerFromClient(client)
	Must(err)
	partition, err := consumer.ConsumePartition(topic, 0, start)
	Must(err)
	defer partition.Close()
	var found []*sarama.ConsumerMessage
	// Sarama tells of records alone: after the last one the end is known by silence.
	for last := start - 1; last < end-1; {
		select {
		case m := <-partition.Messages():
			found, last = append(found, m), m.Offset
		case <-time.After(2 * time.Second):
			return found
		}
	}
	return found
}

func values(records []*sarama.ConsumerMessage) (found []string) {
	for _, r := range records {
		found = append(found, string(r.Value))
	}
	return found
}

func encoder(b []byte) sarama.Encoder {
	if b == nil {
		return nil
	}
	return sarama.ByteEncoder(b)
}

func read(topic string, records []Record) {
	var found []Record
	for i, r := range everything(topic, sarama.ReadUncommitted) {
		Equal("offset", r.Offset, i)
		headers := []Header{}
		for _, h := range r.Headers {
			headers = append(headers, Header{Key: string(h.Key), Value: h.Value})
		}
		found = append(found, Record{Key: r.Key, Value: r.Value, Headers: headers, Timestamp: r.Timestamp.UnixMilli()})
	}
	Same(topic, found, records)
}

func roundTrips(records []Record, prefix string) {
	for name, codec := range codecs {
		topic := create(prefix+name, 1, nil)
		p := producer(func(c *sarama.Config) { c.Producer.Compression = codec })
		var sent []*sarama.ProducerMessage
		for _, r := range records {
			m := &sarama.ProducerMessage{Topic: topic, Key: encoder(r.Key), Value: encoder(r.Value), Timestamp: time.UnixMilli(r.Timestamp)}
			for _, h := range r.Headers {
				m.Headers = append(m.Headers, sarama.RecordHeader{Key: []byte(h.Key), Value: h.Value})
			}
			sent = append(sent, m)
		}
		Must(p.SendMessages(sent))
		for i, m := range sent {
			Equal("offset", m.Offset, i)
		}
		Must(p.Close())
		read(topic, records)
	}
}

// member reads and marks, and commits when partitions are taken away.
type member struct {
	group    sarama.ConsumerGroup
	cancel   context.CancelFunc
	lock     sync.Mutex
	seen     []string
	assigned int
	done     sync.WaitGroup
}

func (m *member) Setup(s sarama.ConsumerGroupSession) error {
	m.lock.Lock()
	defer m.lock.Unlock()
	m.assigned = 0
	for _, partitions := range s.Claims() {
		m.assigned += len(partitions)
	}
	return nil
}

func (m *member) Cleanup(s sarama.ConsumerGroupSession) error {
	s.Commit()
	return nil
}

func (m *member) ConsumeClaim(s sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for {
		select {
		case r, open := <-claim.Messages():
			if !open {
				return nil
			}
			m.lock.Lock()
			m.seen = append(m.seen, string(r.Value))
			m.lock.Unlock()
			s.MarkMessage(r, "")
		case <-s.Context().Done():
			return nil
		}
	}
}

func join(topic, group string, strategy sarama.BalanceStrategy) *member {
	m := &member{}
	var err error
	m.group, err = sarama.NewConsumerGroup(bootstrap, group, config(func(c *sarama.Config) {
		c.Consumer.Group.Session.Timeout, c.Consumer.Group.Heartbeat.Interval = 6*time.Second, 500*time.Millisecond
		c.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{strategy}
		c.Consumer.Offsets.AutoCommit.Enable = false
	}))
	Must(err)
	var ctx context.Context
	ctx, m.cancel = context.WithCancel(context.Background())
	m.done.Go(func() {
		for ctx.Err() == nil {
			if err := m.group.Consume(ctx, []string{topic}, m); err != nil && !errors.Is(err, sarama.ErrClosedConsumerGroup) {
				panic(err)
			}
		}
	})
	return m
}

func (m *member) has(n int) bool {
	m.lock.Lock()
	defer m.lock.Unlock()
	return m.assigned == n
}

func (m *member) stop() {
	m.cancel()
	m.done.Wait()
	Must(m.group.Close())
}

// all says whether the members have read these numbers, and nothing twice.
func all(b int, members ...*member) func() bool {
	return func() bool {
		var found []string
		for _, m := range members {
			m.lock.Lock()
			found = append(found, m.seen...)
			m.lock.Unlock()
		}
		expected := Numbers(0, b)
		slices.Sort(found)
		slices.Sort(expected)
		return slices.Equal(found, expected)
	}
}

func groupOf(strategy sarama.BalanceStrategy) {
	topic, group := create(Fresh("sarama"), 4, nil), Fresh("sarama")
	p := producer(func(c *sarama.Config) { c.Producer.Partitioner = sarama.NewManualPartitioner })
	defer p.Close()
	write := func(a, b int) {
		var sent []*sarama.ProducerMessage
		for i := a; i < b; i++ {
			sent = append(sent, &sarama.ProducerMessage{Topic: topic, Partition: int32(i % 4), Value: sarama.StringEncoder(fmt.Sprint(i))})
		}
		Must(p.SendMessages(sent))
	}
	write(0, 100)
	first := join(topic, group, strategy)
	Until("the first member has all", func() bool { return first.has(4) && all(100, first)() })
	second := join(topic, group, strategy)
	Until("two members share", func() bool { return first.has(2) && second.has(2) })
	write(100, 200)
	Until("two members read all once", all(200, first, second))
	first.stop()
	Until("the second member has all", func() bool { return second.has(4) })
	write(200, 240)
	Until("the second member reads all once", all(240, first, second))
	second.stop()
	a := admin()
	defer a.Close()
	committed, err := a.ListConsumerGroupOffsets(group, map[string][]int32{topic: {0, 1, 2, 3}})
	Must(err)
	for p := range int32(4) {
		Equal("committed offset", committed.GetBlock(topic, p).Offset, 60)
	}
	write(240, 250)
	third := join(topic, group, strategy)
	Until("the third member goes on", all(250, first, second, third))
	third.stop()
	groups, err := a.ListConsumerGroups()
	Must(err)
	Equal("type of the group", groups[group], "consumer")
	Must(a.DeleteConsumerGroup(group))
}

func groups() {
	for _, strategy := range []sarama.BalanceStrategy{sarama.NewBalanceStrategyRange(), sarama.NewBalanceStrategyRoundRobin(), sarama.NewBalanceStrategySticky()} {
		groupOf(strategy)
	}
}

func transactions() {
	topic, source, group, identity := create(Fresh("sarama"), 1, nil), create(Fresh("sarama"), 1, nil), Fresh("sarama"), Fresh("sarama")
	start := func() sarama.SyncProducer {
		return producer(func(c *sarama.Config) {
			c.Producer.Idempotent, c.Producer.Transaction.ID, c.Net.MaxOpenRequests, c.Producer.Retry.Max = true, identity, 1, 20
		})
	}
	send := func(p sarama.SyncProducer, value string) error {
		_, _, err := p.SendMessage(&sarama.ProducerMessage{Topic: topic, Value: sarama.StringEncoder(value)})
		return err
	}
	p := start()
	var expected []string
	for round, commit := range []bool{true, false, true, false, true} {
		Must(p.BeginTxn())
		for i := range 10 {
			value := fmt.Sprintf("%d-%d", round, i)
			Must(send(p, value))
			if commit {
				expected = append(expected, value)
			}
		}
		Must(p.AddOffsetsToTxn(map[string][]*sarama.PartitionOffsetMetadata{source: {{Partition: 0, Offset: int64(round + 1)}}}, group))
		if commit {
			Must(p.CommitTxn())
		} else {
			Must(p.AbortTxn())
		}
	}
	Equal("committed", values(everything(topic, sarama.ReadCommitted)), expected)
	Equal("all", len(everything(topic, sarama.ReadUncommitted)), 50)
	a := admin()
	defer a.Close()
	committed, err := a.ListConsumerGroupOffsets(group, map[string][]int32{source: {0}})
	Must(err)
	Equal("offset of the transactions", committed.GetBlock(source, 0).Offset, 5)
	Must(p.BeginTxn())
	Must(send(p, "lost"))
	successor := start()
	if err := send(p, "zombie"); err == nil {
		panic("a fenced producer wrote")
	}
	Must(successor.BeginTxn())
	Must(send(successor, "successor"))
	Must(successor.CommitTxn())
	Must(successor.Close())
	Equal("committed after fencing", values(everything(topic, sarama.ReadCommitted)), append(expected, "successor"))
}

func administration() {
	text := func(s string) *string { return &s }
	topic := create(Fresh("sarama"), 2, map[string]*string{"retention.ms": text("3600000"), "cleanup.policy": text("compact")})
	a := admin()
	defer a.Close()
	if err := a.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1}, false); !errors.Is(err, sarama.ErrTopicAlreadyExists) {
		panic(fmt.Sprintf("wrong error: %v", err))
	}
	check := func(expected string) {
		entries, err := a.DescribeConfig(sarama.ConfigResource{Type: sarama.TopicResource, Name: topic})
		Must(err)
		values := map[string]string{}
		for _, e := range entries {
			values[e.Name] = e.Value
		}
		Equal("config", values["retention.ms"]+" "+values["cleanup.policy"], expected)
	}
	check("3600000 compact")
	Must(a.IncrementalAlterConfig(sarama.TopicResource, topic, map[string]sarama.IncrementalAlterConfigsEntry{
		"retention.ms":   {Operation: sarama.IncrementalAlterConfigsOperationSet, Value: text("60000")},
		"cleanup.policy": {Operation: sarama.IncrementalAlterConfigsOperationAppend, Value: text("delete")}}, false))
	check("60000 compact,delete")
	Must(a.CreatePartitions(topic, 5, nil, false))
	described, err := a.DescribeTopics([]string{topic})
	Must(err)
	Equal("partitions after growing", len(described[0].Partitions), 5)
	p := producer(func(c *sarama.Config) { c.Producer.Partitioner = sarama.NewManualPartitioner })
	defer p.Close()
	for _, n := range Numbers(0, 10) {
		_, _, err := p.SendMessage(&sarama.ProducerMessage{Topic: topic, Key: sarama.StringEncoder("k"), Value: sarama.StringEncoder(n)})
		Must(err)
	}
	Must(a.DeleteRecords(topic, map[int32]int64{0: 7}))
	Equal("records after a deletion", values(everything(topic, sarama.ReadUncommitted)), []string{"7", "8", "9"})
	Must(a.DeleteTopic(topic))
	if err := a.DeleteTopic(topic); !errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
		panic(fmt.Sprintf("wrong error: %v", err))
	}
}

func brokerKilled() {
	topic := create(Fresh("sarama"), 1, nil)
	p, err := sarama.NewAsyncProducer(bootstrap, config(func(c *sarama.Config) {
		c.Producer.Idempotent, c.Net.MaxOpenRequests, c.Producer.Retry.Max, c.Producer.Retry.Backoff = true, 1, 200, 50*time.Millisecond
	}))
	Must(err)
	go func() {
		for i := range 3000 {
			if i == 1000 {
				KillBroker()
			}
			if i%20 == 0 {
				time.Sleep(5 * time.Millisecond)
			}
			p.Input() <- &sarama.ProducerMessage{Topic: topic, Value: sarama.StringEncoder(fmt.Sprint(i))}
		}
	}()
	for i := range 3000 {
		select {
		case m := <-p.Successes():
			Equal("offset", m.Offset, i)
		case e := <-p.Errors():
			panic(e)
		}
	}
	Must(p.Close())
	Equal("records", values(everything(topic, sarama.ReadUncommitted)), Numbers(0, 3000))
}

func main() {
	Main(roundTrips, read, []Scenario{{Name: "groups", Run: groups}, {Name: "transactions", Run: transactions},
		{Name: "administration", Run: administration}, {Name: "broker killed", Run: brokerKilled}})
}
