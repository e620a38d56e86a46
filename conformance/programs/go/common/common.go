// Package common holds what the Go clients share: the records, the scenarios' loop, and waiting.
package common

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// Header keeps null apart from empty.
type Header struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

// Record is what is written, and what must be read; the timestamp is in milliseconds.
type Record struct {
	Key       []byte   `json:"key"`
	Value     []byte   `json:"value"`
	Headers   []Header `json:"headers"`
	Timestamp int64    `json:"timestamp"`
}

// Load reads a file of records.
func Load(path string) []Record {
	text, err := os.ReadFile(path)
	Must(err)
	var found []Record
	Must(json.Unmarshal(text, &found))
	return found
}

// Must panics with an error.
func Must(err error) {
	if err != nil {
		panic(err)
	}
}

// Equal panics if two things do not print the same.
func Equal(what string, found, expected any) {
	if f, e := fmt.Sprint(found), fmt.Sprint(expected); f != e {
		panic(fmt.Sprintf("%s: found %.600s, expected %.600s", what, f, e))
	}
}

func same(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

// Same panics if records differ; a null is not an empty thing.
func Same(topic string, found, expected []Record) {
	Equal("records of "+topic, len(found), len(expected))
	for i, e := range expected {
		f := found[i]
		good := same(f.Key, e.Key) && same(f.Value, e.Value) && f.Timestamp == e.Timestamp && len(f.Headers) == len(e.Headers)
		for h := range e.Headers {
			good = good && f.Headers[h].Key == e.Headers[h].Key && same(f.Headers[h].Value, e.Headers[h].Value)
		}
		if !good {
			panic(fmt.Sprintf("record %d of %s: found %.400v, expected %.400v", i, topic, f, e))
		}
	}
}

// Until waits for a condition.
func Until(what string, done func() bool) {
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			panic(what + ": not within a minute")
		}
	}
}

var count int

// Fresh is a name that nobody has used.
func Fresh(name string) string {
	count++
	return fmt.Sprintf("%s-%d-%d", name, time.Now().UnixNano(), count)
}

// Numbers are the decimal numbers from a (inclusive) to b (exclusive).
func Numbers(a, b int) []string {
	found := []string{}
	for i := a; i < b; i++ {
		found = append(found, fmt.Sprint(i))
	}
	return found
}

// KillBroker makes the driver kill the broker, and start it again, while the program goes on.
func KillBroker() { fmt.Println("kill") }

// Scenario has a name and panics if it fails.
type Scenario struct {
	Name string
	Run  func()
}

// Main runs PROGRAM BOOTSTRAP write RECORDS PREFIX, or PROGRAM BOOTSTRAP read (TOPIC RECORDS)...
func Main(roundTrips func([]Record, string), read func(string, []Record), scenarios []Scenario) {
	rest := os.Args[3:]
	if os.Args[2] == "read" {
		scenarios = nil
		for i := 0; i < len(rest); i += 2 {
			scenarios = append(scenarios, Scenario{"read " + rest[i], func() { read(rest[i], Load(rest[i+1])) }})
		}
	} else {
		scenarios = append([]Scenario{{"round trips", func() { roundTrips(Load(rest[0]), rest[1]) }}}, scenarios...)
	}
	failed := false
	for _, s := range scenarios {
		func() {
			defer func() {
				if e := recover(); e != nil {
					failed = true
					fmt.Printf("FAIL %s: %s\n", s.Name, strings.ReplaceAll(fmt.Sprintf("%.800v", e), "\n", " "))
				}
			}()
			s.Run()
			fmt.Println("ok", s.Name)
		}()
	}
	if failed {
		os.Exit(1)
	}
}
