// franz-go against a broker; see ../common.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	. "caudal/conformance/programs/common"
)

var (
	ctx    = context.Background()
	codecs = map[string]kgo.CompressionCodec{"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression()}
)

func client(options ...kgo.Opt) *kgo.Client {
	c, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(os.Args[1])}, options...)...)
	Must(err)
	return c
}

func admin() *kadm.Client { return kadm.NewClient(client()) }

func create(name string, partitions int32, config map[string]*string) string {
	a := admin()
	defer a.Close()
	answer, err := a.CreateTopic(ctx, partitions, 1, config, name)
	Must(err)
	Must(answer.Err)
	return name
}

// everything reads a topic up to its end now.
func everything(topic string, level kgo.IsolationLevel) []*kgo.Record {
	a := admin()
	defer a.Close()
	ends, err := a.ListEndOffsets(ctx, topic)
	Must(err)
	starts, err := a.ListStartOffsets(ctx, topic)
	Must(err)
	c := client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(level), kgo.KeepControlRecords())
	defer c.Close()
	open := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if start, _ := starts.Lookup(topic, o.Partition); start.Offset < o.Offset {
			open[o.Partition] = o.Offset
		}
	})
	var found []*kgo.Record
	limit, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for len(open) > 0 {
		fetches := c.PollFetches(limit)
		Must(fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				found = append(found, r)
			}
			if r.Offset+1 >= open[r.Partition] {
				delete(open, r.Partition)
			}
		})
	}
	return found
}

func values(records []*kgo.Record) (found []string) {
	for _, r := range records {
		found = append(found, string(r.Value))
	}
	return found
}

func read(topic string, records []Record) {
	var found []Record
	for i, r := range everything(topic, kgo.ReadUncommitted()) {
		Equal("offset", r.Offset, i)
		headers := []Header{}
		for _, h := range r.Headers {
			headers = append(headers, Header{Key: h.Key, Value: h.Value})
		}
		found = append(found, Record{Key: r.Key, Value: r.Value, Headers: headers, Timestamp: r.Timestamp.UnixMilli()})
	}
	Same(topic, found, records)
}

func roundTrips(records []Record, prefix string) {
	for name, codec := range codecs {
		topic := create(prefix+name, 1, nil)
		c := client(kgo.ProducerBatchCompression(codec), kgo.DefaultProduceTopic(topic))
		var sent []*kgo.Record
		for _, r := range records {
			record := &kgo.Record{Key: r.Key, Value: r.Value, Timestamp: time.UnixMilli(r.Timestamp)}
			for _, h := range r.Headers {
				record.Headers = append(record.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
			}
			sent = append(sent, record)
		}
		Must(c.ProduceSync(ctx, sent...).FirstErr())
		for i, r := range sent {
			Equal("offset", r.Offset, i)
		}
		c.Close()
		read(topic, records)
	}
}

type member struct {
	client   *kgo.Client
	lock     sync.Mutex
	seen     []string
	assigned map[int32]bool
	done     sync.WaitGroup
}

func join(topic, group string, options ...kgo.Opt) *member {
	m := &member{assigned: map[int32]bool{}}
	note := func(has bool) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, c *kgo.Client, topics map[string][]int32) {
			if !has {
				Must(c.CommitUncommittedOffsets(ctx))
			}
			m.lock.Lock()
			defer m.lock.Unlock()
			for _, p := range topics[topic] {
				if has {
					m.assigned[p] = true
				} else {
					delete(m.assigned, p)
				}
			}
		}
	}
	m.client = client(append(options, kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(), kgo.SessionTimeout(6*time.Second), kgo.HeartbeatInterval(500*time.Millisecond), kgo.OnPartitionsAssigned(note(true)), kgo.OnPartitionsRevoked(note(false)))...)
	m.done.Go(func() {
		for {
			fetches := m.client.PollFetches(ctx)
			if fetches.IsClientClosed() {
				return
			}
			m.lock.Lock()
			m.seen = append(m.seen, values(fetches.Records())...)
			m.lock.Unlock()
			m.client.AllowRebalance()
		}
	})
	return m
}

func (m *member) has(n int) bool {
	m.lock.Lock()
	defer m.lock.Unlock()
	return len(m.assigned) == n
}

func (m *member) stop() {
	Must(m.client.CommitUncommittedOffsets(ctx))
	m.client.CloseAllowingRebalance()
	m.done.Wait()
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

func groupOf(options ...kgo.Opt) {
	topic, group := create(Fresh("franz"), 4, nil), Fresh("franz")
	producer := client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DefaultProduceTopic(topic))
	defer producer.Close()
	write := func(a, b int) {
		for i := a; i < b; i++ {
			producer.Produce(ctx, &kgo.Record{Value: fmt.Append(nil, i), Partition: int32(i % 4)}, func(_ *kgo.Record, err error) { Must(err) })
		}
		Must(producer.Flush(ctx))
	}
	write(0, 100)
	first := join(topic, group, options...)
	Until("the first member has all", func() bool { return first.has(4) && all(100, first)() })
	second := join(topic, group, options...)
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
	committed, err := a.FetchOffsets(ctx, group)
	Must(err)
	for p := range int32(4) {
		o, _ := committed.Lookup(topic, p)
		Equal("committed offset", o.At, 60)
	}
	write(240, 250)
	third := join(topic, group, options...)
	Until("the third member goes on", all(250, first, second, third))
	third.stop()
	groups, err := a.ListGroups(ctx)
	Must(err)
	_, found := groups[group]
	Equal("group is listed", found, true)
	deleted, err := a.DeleteGroup(ctx, group)
	Must(err)
	Must(deleted.Err)
}

func classicGroups() {
	for _, balancer := range []kgo.GroupBalancer{kgo.RangeBalancer(), kgo.StickyBalancer(), kgo.CooperativeStickyBalancer()} {
		groupOf(kgo.Balancers(balancer))
	}
}

func consumerGroups() { groupOf(kgo.ServerSideBalancer(), kgo.Balancers(kgo.RangeBalancer())) }

func transactions() {
	topic, source, group, identity := create(Fresh("franz"), 1, nil), create(Fresh("franz"), 1, nil), Fresh("franz"), Fresh("franz")
	// A session reads `source` and writes `topic`: what an aborted one has read it reads again.
	feed := client(kgo.DefaultProduceTopic(source))
	defer feed.Close()
	for _, n := range Numbers(0, 50) {
		Must(feed.ProduceSync(ctx, kgo.StringRecord(n)).FirstErr())
	}
	session, err := kgo.NewGroupTransactSession(kgo.SeedBrokers(os.Args[1]), kgo.TransactionalID(identity), kgo.DefaultProduceTopic(topic), kgo.ConsumerGroup(group),
		kgo.ConsumeTopics(source), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.RequireStableFetchOffsets())
	Must(err)
	moved := 0
	for round := 0; moved < 50; round++ {
		limit, cancel := context.WithTimeout(ctx, 30*time.Second)
		fetches := session.PollRecords(limit, 10)
		cancel()
		Must(fetches.Err())
		Must(session.Begin())
		for _, r := range fetches.Records() {
			Must(session.ProduceSync(ctx, &kgo.Record{Value: r.Value}).FirstErr())
		}
		committed, err := session.End(ctx, round%2 == 1)
		Must(err)
		if committed {
			moved += fetches.NumRecords()
		}
	}
	session.Close()
	Equal("committed", values(everything(topic, kgo.ReadCommitted())), Numbers(0, 50))
	if n := len(everything(topic, kgo.ReadUncommitted())); n != 100 {
		panic(fmt.Sprintf("%d records in all, not 100", n))
	}
	a := admin()
	defer a.Close()
	offsets, err := a.FetchOffsets(ctx, group)
	Must(err)
	o, _ := offsets.Lookup(source, 0)
	Equal("offset of the transactions", o.At, 50)

	start := func() *kgo.Client {
		c := client(kgo.TransactionalID(identity), kgo.DefaultProduceTopic(topic))
		Must(c.BeginTransaction())
		return c
	}
	zombie := start()
	defer zombie.Close()
	Must(zombie.ProduceSync(ctx, kgo.StringRecord("lost")).FirstErr())
	successor := start()
	defer successor.Close()
	Must(successor.ProduceSync(ctx, kgo.StringRecord("successor")).FirstErr())
	err = zombie.ProduceSync(ctx, kgo.StringRecord("zombie")).FirstErr()
	if !errors.Is(err, kerr.InvalidProducerEpoch) && !errors.Is(err, kerr.ProducerFenced) {
		panic(fmt.Sprintf("wrong error of a fenced producer: %v", err))
	}
	Must(successor.EndTransaction(ctx, kgo.TryCommit))
	Equal("committed after fencing", values(everything(topic, kgo.ReadCommitted())), append(Numbers(0, 50), "successor"))
}

func administration() {
	config := map[string]*string{"retention.ms": kadm.StringPtr("3600000"), "cleanup.policy": kadm.StringPtr("compact")}
	topic := create(Fresh("franz"), 2, config)
	a := admin()
	defer a.Close()
	if answer, _ := a.CreateTopic(ctx, 1, 1, nil, topic); !errors.Is(answer.Err, kerr.TopicAlreadyExists) {
		panic(fmt.Sprintf("wrong error: %v", answer.Err))
	}
	check := func(expected string) {
		found, err := a.DescribeTopicConfigs(ctx, topic)
		Must(err)
		values := map[string]string{}
		for _, c := range found[0].Configs {
			values[c.Key] = c.MaybeValue()
		}
		Equal("config", values["retention.ms"]+" "+values["cleanup.policy"], expected)
	}
	check("3600000 compact")
	_, err := a.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: kadm.StringPtr("60000")}, {Op: kadm.AppendConfig, Name: "cleanup.policy", Value: kadm.StringPtr("delete")}}, topic)
	Must(err)
	check("60000 compact,delete")
	grown, err := a.UpdatePartitions(ctx, 5, topic)
	Must(err)
	Must(grown.Error())
	topics, err := a.ListTopics(ctx)
	Must(err)
	Equal("partitions after growing", len(topics[topic].Partitions), 5)
	c := client(kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	defer c.Close()
	for _, n := range Numbers(0, 10) {
		Must(c.ProduceSync(ctx, kgo.KeyStringRecord("k", n)).FirstErr())
	}
	before := kadm.Offsets{}
	before.AddOffset(topic, 0, 7, -1)
	_, err = a.DeleteRecords(ctx, before)
	Must(err)
	Equal("records after a deletion", values(everything(topic, kgo.ReadUncommitted())), []string{"7", "8", "9"})
	deleted, err := a.DeleteTopic(ctx, topic)
	Must(err)
	Must(deleted.Err)
	if deleted, _ = a.DeleteTopic(ctx, topic); !errors.Is(deleted.Err, kerr.UnknownTopicOrPartition) {
		panic(fmt.Sprintf("wrong error: %v", deleted.Err))
	}
}

func brokerKilled() {
	topic := create(Fresh("franz"), 1, nil)
	c := client(kgo.DefaultProduceTopic(topic), kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }))
	defer c.Close()
	var offsets []int64
	for i := range 3000 {
		if i == 1000 {
			KillBroker()
		}
		if i%20 == 0 {
			time.Sleep(5 * time.Millisecond)
		}
		c.Produce(ctx, kgo.StringRecord(fmt.Sprint(i)), func(r *kgo.Record, err error) {
			if err == nil {
				offsets = append(offsets, r.Offset)
			}
		})
	}
	Must(c.Flush(ctx))
	Equal("offsets", offsets, Numbers(0, 3000))
	Equal("records", values(everything(topic, kgo.ReadUncommitted())), Numbers(0, 3000))
}

func main() {
	Main(roundTrips, read, []Scenario{{Name: "classic groups", Run: classicGroups}, {Name: "consumer groups", Run: consumerGroups},
		{Name: "transactions", Run: transactions}, {Name: "administration", Run: administration}, {Name: "broker killed", Run: brokerKilled}})
}
