-- What both scripts begin with: a history that is whole.
--
-- KEYS[1] order    zset   key -> id of its newest entry
-- KEYS[2] entries  hash   key -> newest entry (JSON)
-- KEYS[3] ended    zset   key -> id, of those entries that the bounds may remove; and '' -> the last id issued

local order, entries, ended = KEYS[1], KEYS[2], KEYS[3]

local FINAL = {SUCCESS = true, FAILURE = true, REVOKED = true, REJECTED = true, IGNORED = true}

-- What an entry says of a task, and its id; nil for a custom event, or what cannot be read.
local function task_in(entry)
  local readable, value = pcall(cjson.decode, entry)
  if not readable or type(value) ~= 'table' or type(value.data) ~= 'table' then return nil, nil end
  local id = type(value.id) == 'string' and #value.id <= 16 and string.match(value.id, '^%d+$') and tonumber(value.id)
  if type(value.data.attempt) ~= 'number' or type(value.data.state) ~= 'string' then return nil, id end
  return value.data, id
end

local function forget(forgotten)
  redis.call('ZREM', order, forgotten)
  redis.call('ZREM', ended, forgotten)
  redis.call('HDEL', entries, forgotten)
end

-- Reads a key. One of another type is none of ours, and would end this user's notifications for good: it expires now.
local function read(command, name, ...)
  local answer = redis.pcall(command, name, ...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  if string.find(answer.err, 'WRONGTYPE', 1, true) then redis.call('PEXPIRE', name, 0) end
  return redis.call(command, name, ...)
end

-- Makes both sets anew from the entries, and forgets what has none.
local function repair(kept_for)
  local last, kept, lost = tonumber(redis.call('ZSCORE', ended, '')) or 0, {}, {}
  local stored = redis.call('HGETALL', entries)
  for i = 1, #stored, 2 do
    local task, id = task_in(stored[i + 1])
    if id then
      redis.call('ZADD', order, id, stored[i])
      if not task or FINAL[task.state] then redis.call('ZADD', ended, id, stored[i]) end
      kept[stored[i]] = true
    else
      lost[#lost + 1] = stored[i]
    end
  end
  local ordered = redis.call('ZRANGE', order, 0, -1, 'WITHSCORES')
  for i = 1, #ordered, 2 do
    last = math.max(last, tonumber(ordered[i + 1]))
    if not kept[ordered[i]] then lost[#lost + 1] = ordered[i] end
  end
  redis.call('ZADD', ended, last, '')
  for _, key_of_none in ipairs(lost) do forget(key_of_none) end
  -- Nothing may be published to this user any more: what was made anew has an end too.
  for _, name in ipairs({order, entries, ended}) do redis.call('PEXPIRE', name, kept_for * 1000) end
  return last
end

-- Returns the last id issued, 0 for none. Redis evicts keys one by one: where one of the three is gone, it is made anew,
-- and kept for so many seconds if nothing more is published.
local function whole(kept_for)
  local last = read('ZSCORE', ended, '')
  local count = read('HLEN', entries)
  if count ~= read('ZCARD', order) or (count > 0 and not last) then return repair(kept_for) end
  return tonumber(last) or 0
end

