-- Publishes one event to one user: decides, numbers, stores, counts, bounds the history and publishes, in one step. What
-- stands in repair.lua and tally.lua comes before it.
--
-- KEYS[1] order    zset   key -> id of its newest entry
-- KEYS[2] entries  hash   key -> newest entry (JSON)
-- KEYS[3] ended    zset   key -> id, of those entries that the bounds may remove: what has ended, custom events; and
--                         '' -> the last id issued, which outlives removed entries, so that ids rise when the clock
--                         steps back
-- KEYS[4] job      hash   the numbers of the task's job: see tally.lua; for a task event only
--
-- ARGV[1] channel
-- ARGV[2] size     the most entries
-- ARGV[3] ttl      seconds that an entry is kept after its task has ended
-- ARGV[4] kept     seconds that a history is kept after its last event while something in it has not ended
-- ARGV[5] key      task id or custom key
-- ARGV[6] what     a task event: the task's state; any other: "once" if the key is its alone, so that one that is
--                  repeated, since the answer to the first was lost, is not told twice; "removed" takes the entry out
--                  of the history instead of storing one; "close-streams" is only published: it speaks to the hubs
-- ARGV[7] text     what the entry says between its id and the two braces at its end: who runs the task, the user, the
--                  event's name, and its data but for what is added here: current, total, cancelling, at and job
-- ARGV[8] since    the id that the key's entry must have now: an observer's word counts only while nothing newer was
--                  told; negative if it must have one that is older than this; 0 if that does not matter
-- for task events:
-- ARGV[9] attempt, ARGV[10] current and ARGV[11] total as JSON numbers or "", ARGV[12] the job's id,
-- ARGV[13] weight  of the task in its job
--
-- Returns the id (1 for what has none); 0 if the task is only counted in its job, where many wait that have entries,
-- or if the event was refused because it would move its task backwards, because
-- its key's entry is another than `since`, if a custom event's key is a task's, or if a task that is to be removed is
-- still running; -1 if there is nothing to remove.

local channel, size, ttl, kept = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local key, what, text, since = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])
local attempt, current, total = tonumber(ARGV[9]), ARGV[10], ARGV[11]
local job_id, weight = ARGV[12], ARGV[13]
local state = attempt and what
-- In microseconds: a history of tasks that run on is kept for longer by the first event of each of them in a minute.
local MINUTE = 60000000

local stored = nil
local function stored_task()
  stored = redis.call('HGET', entries, key)
  if stored then return task_in(stored) end
end

-- Whether the event would move a task backwards. Within one attempt the order is PENDING, STARTED, PROGRESS with a
-- current that does not fall, then RETRY or an end. A redelivered message runs a second time under the same attempt:
-- its beginning is no news, and its ending counts only if none was told before.
local function backwards(was)
  if since > 0 and state == was.state then return FINAL[state] or false end -- the same entry, told anew
  if attempt ~= was.attempt then return attempt < was.attempt end
  if FINAL[was.state] then return true end
  if FINAL[state] or state == 'RETRY' or state == 'STALLED' then return false end
  if state == 'PENDING' or was.state == 'RETRY' then return true end
  if state == 'STARTED' then return was.state ~= 'PENDING' and was.state ~= 'STALLED' end
  return current ~= '' and type(was.current) == 'number' and tonumber(current) < was.current
end

-- A message that is delivered again begins a run that is no news, but somebody else's. Returns what is to be told again
-- under the new name, nil for any other event: who ran the task before may be gone, and nobody would ask for the new one.
local function taken_over(was)
  if not stored or state ~= 'STARTED' or attempt ~= was.attempt or (was.state ~= 'STARTED' and was.state ~= 'PROGRESS') then return nil end
  local before, told = string.match(stored, '^{"id":"%d+","worker":"([^"]+)".-"data":(.+)}}$')
  return before ~= string.match(text, '^,"worker":"([^"]+)"') and told or nil
end

-- JSON has no infinity and no NaN, but cjson reads both.
local function json_number(value)
  if type(value) ~= 'number' or value ~= value or math.abs(value) == math.huge then return '' end
  return string.format('%.17g', value)
end

-- RFC 3339 in UTC. Redis gives scripts no date function: days since 1970 to year, month, day, with years that begin in
-- March, so that a leap day is the last of its year.
local function timestamp(now)
  local microseconds, second = now % 1000000, (now - now % 1000000) / 1000000
  local second_of_day = second % 86400
  local days = (second - second_of_day) / 86400 + 719468
  local day = days % 146097
  local era = (days - day) / 146097
  local year = math.floor((day - math.floor(day / 1460) + math.floor(day / 36524) - math.floor(day / 146096)) / 365)
  day = day - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * day + 2) / 153)
  day = day - math.floor((153 * month + 2) / 5) + 1
  month = month < 10 and month + 3 or month - 9
  year = year + era * 400 + (month <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%03dZ', year, month, day, second_of_day / 3600,
    second_of_day / 60 % 60, second_of_day % 60, microseconds / 1000)
end

if what == 'close-streams' then
  redis.call('PUBLISH', channel, '{"id":""' .. text .. '}}')
  return 1
end

local last = whole(kept)

if what == 'once' then
  local told = redis.call('ZSCORE', order, key)
  if told then return tonumber(told) end
end

if since ~= 0 then
  local id = tonumber(redis.call('ZSCORE', order, key))
  if not id or (since > 0 and id ~= since) or (since < 0 and id >= -since) then return 0 end
end

local removing = what == 'removed'
local was, was_id, again = nil, nil, nil
local sums = job and read('HGET', job, 'sums')
local jobs = sums and tally()
sums = sums and jobs.read(sums)
if removing then
  if not redis.call('ZSCORE', order, key) then return -1 end
  was = stored_task()
  if was and not FINAL[was.state] and was.state ~= 'STALLED' then return 0 end
else
  was, was_id = stored_task()
  if not was and sums then was, was_id = jobs.member(key), nil end
  if was and (not attempt or backwards(was)) then
    again = attempt and taken_over(was)
    if not again then return 0 end
  end
end

-- The entries that a job has of its tasks that wait, and as many of those that have ended: half of the history each.
local most = math.max(1, math.floor(size / 2))
if attempt and not again and not sums and (key ~= job_id or was and was.job) then -- there is another one
  jobs = tally()
  sums = jobs.begin(job_id, key, was)
end
if sums and not again and not was and jobs.hides(sums, state, most) then
  jobs.count(sums, key, attempt, state, weight, current, total, 1)
  jobs.save(sums, kept)
  return 0
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local id = string.format('%.0f', math.max(now, last + 1))

local makes_room, added = nil, ''
if again then
  text = string.match(text, '^.-"data":') .. string.gsub(again, ',"job":{[^{}]*}$', '')
elseif not removing then
  -- An end or a new beginning that knows less than what was shown does not take it away.
  local shown = was and was.attempt == attempt and type(was.current) == 'number' and was.current
  if shown and (current == '' or tonumber(current) < shown) then
    current, total = json_number(was.current), json_number(was.total)
  end
  if attempt and current ~= '' then added = ',"current":' .. current end
  if attempt and total ~= '' then added = added .. ',"total":' .. total end
  -- A cancel is asked for once; who runs the task need not know of it yet.
  if was and was.cancelling == true and not FINAL[state] and not string.find(text, '"cancelling":true', 1, true) then
    added = added .. ',"cancelling":true'
  end
  added = added .. ',"at":"' .. timestamp(now) .. '"'
end
if sums then
  if not again then
    jobs.count(sums, key, attempt, state, weight, current, total, 0)
    makes_room = jobs.gives_up(sums, key, state, most)
    jobs.save(sums, kept)
  end
  added = added .. jobs.numbers_of(sums)
end
local entry = '{"id":"' .. id .. '"' .. text .. added .. '}}'

-- Whether a task whose entry this replaces ran and runs on: then nothing else ends, comes, or goes but to make room.
local goes_on = was and was_id and not FINAL[was.state] and not FINAL[state]
if removing then
  redis.call('ZADD', ended, id, '')
  forget(key)
else
  redis.call('ZADD', order, id, key)
  redis.call('HSET', entries, key, entry)
  if attempt and not FINAL[state] then
    redis.call('ZADD', ended, id, '')
    if not goes_on then redis.call('ZREM', ended, key) end
  else
    redis.call('ZADD', ended, id, '', id, key)
    if sums then jobs.keep_failure(id) end
  end
  if makes_room then forget(makes_room) end
  -- The oldest of what has ended goes first, what was stored just now never.
  local too_old = now - ttl * 1000000
  while not goes_on do
    local oldest = redis.call('ZRANGE', ended, 0, 0, 'WITHSCORES')
    if tonumber(oldest[2]) >= tonumber(id) then break end
    if redis.call('ZCARD', order) <= tonumber(size) and tonumber(oldest[2]) >= too_old then break end
    forget(oldest[1])
  end
end

if not goes_on or math.floor(now / MINUTE) ~= math.floor(was_id / MINUTE) then
  local lifetime = ttl * 1000
  if redis.call('ZCARD', order) > redis.call('ZCARD', ended) - 1 then
    lifetime = math.max(ttl, kept) * 1000 + MINUTE / 1000
  end
  for _, name in ipairs({order, entries, ended}) do redis.call('PEXPIRE', name, math.ceil(lifetime)) end
end

-- Last, so that what cannot be stored is not told either.
redis.call('PUBLISH', channel, entry)
return tonumber(id)
