-- A football match, live: positions ten times a second in, figures for the bench out.
-- Run by `caudal demo football`; Apache Spark 4.2 runs the same text (see README.md beside this file).
--
-- ${bootstrap} is the broker. A step between two samples counts if they lie at most half a second apart (trackers have
-- gaps) and nobody would have had to run faster than 12 m/s (trackers jump); it belongs to the second in which it begins.

CREATE TABLE player_position USING kafka OPTIONS (
  'kafka.bootstrap.servers' '${bootstrap}',
  'subscribe' 'player-position',
  'startingOffsets' 'earliest'
);

-- One row for each player and second. Each window holds the second before (was he sprinting already?), the second
-- itself, and one sample more, so that no step between two seconds is lost.
CREATE STREAMING TABLE player_second USING kafka OPTIONS (
  'kafka.bootstrap.servers' '${bootstrap}',
  'topic' 'player-second'
) AS
WITH position AS (
  SELECT p.match_id, p.player_id, p.timestamp AS ts, p.position_x AS x, p.position_y AS y
  FROM (
    SELECT from_json(
      CAST(value AS STRING),
      'match_id STRING, player_id STRING, timestamp TIMESTAMP, position_x DOUBLE, position_y DOUBLE'
    ) AS p
    FROM STREAM player_position
  ) AS message
),
trace AS (
  SELECT match_id, player_id, window.start + INTERVAL 1 SECOND AS second,
         array_sort(collect_list(struct(ts, x, y))) AS samples
  FROM position WATERMARK ts DELAY OF INTERVAL 2 SECONDS
  GROUP BY window(ts, '2100 milliseconds', '1 second'), match_id, player_id
),
step AS (
  SELECT match_id, player_id, second,
         filter(
           zip_with(
             slice(samples, 1, size(samples) - 1),
             slice(samples, 2, size(samples) - 1),
             (a, b) -> named_struct(
               'ts', a.ts,
               's', (unix_micros(b.ts) - unix_micros(a.ts)) / 1000000.0D,
               'm', sqrt((b.x - a.x) * (b.x - a.x) + (b.y - a.y) * (b.y - a.y))
             )
           ),
           step -> step.s <= 0.5D AND step.m <= 12.0D * step.s
         ) AS steps
  FROM trace
),
total AS (
  SELECT match_id, player_id, second,
         aggregate(filter(steps, t -> t.ts >= second AND t.ts < second + INTERVAL 1 SECOND), 0.0D, (sum, t) -> sum + t.m) AS meters,
         aggregate(filter(steps, t -> t.ts >= second AND t.ts < second + INTERVAL 1 SECOND), 0.0D, (sum, t) -> sum + t.s) AS seconds,
         aggregate(filter(steps, t -> t.ts < second), 0.0D, (sum, t) -> sum + t.m) AS meters_before,
         aggregate(filter(steps, t -> t.ts < second), 0.0D, (sum, t) -> sum + t.s) AS seconds_before
  FROM step
)
SELECT player_id AS key,
       to_json(named_struct(
         'match_id', match_id,
         'player_id', player_id,
         'second', second,
         'meters', meters,
         'speed', meters / seconds,
         'sprint', CASE WHEN meters >= 7.0D * seconds AND (seconds_before = 0 OR meters_before < 7.0D * seconds_before) THEN 1 ELSE 0 END
       )) AS value
FROM total
WHERE seconds > 0;

-- The same rows for whoever wants to look closer, as Parquet.
CREATE STREAMING TABLE player_second_history AS
SELECT r.match_id, r.player_id, r.second, r.meters, r.speed, r.sprint
FROM (
  SELECT from_json(
    CAST(value AS STRING),
    'match_id STRING, player_id STRING, second TIMESTAMP, meters DOUBLE, speed DOUBLE, sprint INT'
  ) AS r
  FROM STREAM player_second
) AS message;

-- What the bench sees.
SELECT r.match_id, r.player_id,
       sum(r.meters) AS meters,
       max(r.speed) AS top_speed,
       max_by(r.speed, r.second) AS speed,
       sum(r.sprint) AS sprints,
       count(*) AS seconds
FROM (
  SELECT from_json(
    CAST(value AS STRING),
    'match_id STRING, player_id STRING, second TIMESTAMP, meters DOUBLE, speed DOUBLE, sprint INT'
  ) AS r
  FROM STREAM player_second
) AS message
GROUP BY r.match_id, r.player_id;
