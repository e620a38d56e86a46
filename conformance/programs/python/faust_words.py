"""A faust program: counts words in a table and sends on each count. faust_words.py worker; BOOTSTRAP and DATADIR from the environment."""
import os

import faust

app = faust.App("faust-words", broker=f"kafka://{os.environ['BOOTSTRAP']}", datadir=os.environ["DATADIR"], store="memory://", topic_partitions=2,
                broker_commit_interval=0.2, broker_session_timeout=6.0, broker_heartbeat_interval=0.5, consumer_auto_offset_reset="earliest",
                stream_wait_empty=False, web_enabled=False)
words = app.topic("faust-in", key_type=str, value_type=str, key_serializer="raw", value_serializer="raw")
counts = app.topic("faust-counts", key_serializer="raw", value_serializer="raw")
table = app.Table("counts", default=int)


@app.agent(words)
async def count(stream):
    async for word in stream.group_by(lambda word: word, name="word"):
        table[word] += 1
        await counts.send(key=word.encode(), value=str(table[word]).encode())


if __name__ == "__main__":
    app.main()
