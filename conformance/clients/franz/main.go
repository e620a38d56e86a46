// franz-go against a broker: round trips in every codec, a group of three, replay. go run . BOOTSTRAP
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

var bootstrap string

func client(options ...kgo.Opt) *kgo.Client {
	c, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(bootstrap)}, options...)...)
	if err != nil {
		panic(err)
	}
	return c
}

func topic(partitions int32) string {
	c := client()
	defer c.Close()
	name := fmt.Sprintf("franz-%d", time.Now().UnixNano())
	request := kmsg.NewCreateTopicsRequest()
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = name, partitions, 1
	request.Topics = append(request.Topics, t)
	response, err := request.RequestWith(context.Background(), c)
	if err == nil {
		err = kerr.ErrorForCode(response.Topics[0].ErrorCode)
	}
	if err != nil {
		panic(err)
	}
	return name
}

func poll(c *kgo.Client, n int) []*kgo.Record {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var found []*kgo.Record
	for len(found) < n {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			panic(fmt.Sprintf("read %d of %d: %v", len(found), n, err))
		}
		found = append(found, fetches.Records()...)
	}
	return found
}

func roundTrips() {
	codecs := []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()}
	for _, codec := range codecs {
		name := topic(1)
		c := client(kgo.ProducerBatchCompression(codec), kgo.ConsumeTopics(name), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		sent := []*kgo.Record{
			{Topic: name, Key: []byte("k"), Value: []byte("v"), Headers: []kgo.RecordHeader{{Key: "same", Value: []byte("1")}, {Key: "same", Value: []byte("2")}}},
			{Topic: name, Value: bytes.Repeat([]byte("long"), 10000)},
			{Topic: name, Key: []byte("no value")},
		}
		for i, r := range sent {
			r.Timestamp = time.UnixMilli(1_700_000_000_000 + int64(i))
		}
		if err := c.ProduceSync(context.Background(), sent...).FirstErr(); err != nil {
			panic(err)
		}
		for i, r := range poll(c, len(sent)) {
			s := sent[i]
			if !bytes.Equal(r.Key, s.Key) || !bytes.Equal(r.Value, s.Value) || len(r.Headers) != len(s.Headers) || !r.Timestamp.Equal(s.Timestamp) || r.Offset != int64(i) {
				panic(fmt.Sprintf("record %d came back as %v", i, r))
			}
		}
		c.Close()
	}
}

func tooLarge() {
	name := topic(1)
	c := client(kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerBatchMaxBytes(4<<20), kgo.BrokerMaxWriteBytes(16<<20))
	defer c.Close()
	err := c.ProduceSync(context.Background(), &kgo.Record{Topic: name, Value: make([]byte, 2<<20)}).FirstErr()
	if !errors.Is(err, kerr.MessageTooLarge) {
		panic(fmt.Sprintf("wrong error: %v", err))
	}
}

func groupOfThree() {
	name, group := topic(6), fmt.Sprintf("franz-%d", time.Now().UnixNano())
	producer := client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for i := range 60 {
		r := &kgo.Record{Topic: name, Partition: int32(i % 6), Value: []byte("v")}
		if err := producer.ProduceSync(context.Background(), r).FirstErr(); err != nil {
			panic(err)
		}
	}
	producer.Close()
	seen := map[string]bool{}
	member := func() *kgo.Client {
		return client(kgo.ConsumerGroup(group), kgo.ConsumeTopics(name), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.SessionTimeout(6*time.Second), kgo.HeartbeatInterval(500*time.Millisecond))
	}
	members := []*kgo.Client{member(), member(), member()}
	end := time.Now().Add(60 * time.Second)
	for len(seen) < 60 {
		if time.Now().After(end) {
			panic(fmt.Sprintf("seen %d of 60", len(seen)))
		}
		for _, m := range members {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			m.PollFetches(ctx).EachRecord(func(r *kgo.Record) { seen[fmt.Sprint(r.Partition, ":", r.Offset)] = true })
			cancel()
		}
	}
	if err := members[0].CommitUncommittedOffsets(context.Background()); err != nil {
		panic(err)
	}
	for _, m := range members {
		m.Close()
	}
}

func replay() {
	name := topic(1)
	producer := client()
	for i := range 100 {
		r := &kgo.Record{Topic: name, Value: []byte(fmt.Sprint(i)), Timestamp: time.UnixMilli(1_700_000_000_000 + int64(i)*1000)}
		if err := producer.ProduceSync(context.Background(), r).FirstErr(); err != nil {
			panic(err)
		}
	}
	producer.Close()
	for _, start := range []struct {
		offset kgo.Offset
		first  int64
	}{{kgo.NewOffset().At(57), 57}, {kgo.NewOffset().AfterMilli(1_700_000_041_500), 42}, {kgo.NewOffset().AtEnd().Relative(-1), 99}} {
		c := client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{name: {0: start.offset}}))
		if r := poll(c, 1)[0]; r.Offset != start.first {
			panic(fmt.Sprintf("began at %d, not %d", r.Offset, start.first))
		}
		c.Close()
	}
}

func main() {
	bootstrap = os.Args[1]
	failed := 0
	cases := []struct {
		name string
		run  func()
	}{{"roundTrips", roundTrips}, {"tooLarge", tooLarge}, {"groupOfThree", groupOfThree}, {"replay", replay}}
	for _, c := range cases {
		func() {
			defer func() {
				if problem := recover(); problem != nil {
					failed++
					fmt.Println("FAIL", c.name, problem)
					return
				}
				fmt.Println("ok  ", c.name)
			}()
			c.run()
		}()
	}
	fmt.Printf("%d passed, %d failed\n", len(cases)-failed, failed)
	if failed > 0 {
		os.Exit(1)
	}
}
