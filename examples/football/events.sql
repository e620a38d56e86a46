-- Ball events: passes, shots and recoveries of each team. Run by `caudal demo football --events FILE`.

CREATE TABLE ball_event USING kafka OPTIONS (
  'kafka.bootstrap.servers' '${bootstrap}',
  'subscribe' 'ball-event',
  'startingOffsets' 'earliest'
);

SELECT e.team,
       count_if(e.type = 'PASS') AS passes,
       count_if(e.type = 'SHOT') AS shots,
       count_if(e.type = 'SHOT' AND e.subtype LIKE '%GOAL') AS goals,
       count_if(e.type = 'RECOVERY') AS recoveries,
       count(*) AS events
FROM (
  SELECT from_json(CAST(value AS STRING), 'match_id STRING, timestamp TIMESTAMP, team STRING, type STRING, subtype STRING') AS e
  FROM STREAM ball_event
) AS message
GROUP BY e.team;
