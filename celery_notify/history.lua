-- Reads the entries of one user after an id, in the order of their ids, at one moment. What stands in repair.lua comes
-- before it.
--
-- KEYS[1] order    zset   key -> id of its newest entry
-- KEYS[2] entries  hash   key -> newest entry (JSON)
-- KEYS[3] ended    zset   key -> id, of those entries that the bounds may remove; and '' -> the last id issued
--
-- ARGV[1] after    an id; one above the newest issued counts as none, that is 0
-- ARGV[2] room     bytes of entries after which the answer stops; at least one entry is given
-- ARGV[3] ttl      seconds that an entry is kept after its task has ended; what is older is left out
--
-- Returns the newest id issued, the id up to which the entries are complete, the keys of the whole history, the entries,
-- and of all tasks that run, not only those in the entries: key, "worker" or, if that is lost, "lost", and who it is.

local after, room, ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local last = whole()

local ids = {}
local pairs_of_ended = redis.call('ZRANGE', ended, 0, -1, 'WITHSCORES')
for i = 1, #pairs_of_ended, 2 do
  ids[pairs_of_ended[i]] = tonumber(pairs_of_ended[i + 1])
end

-- The publisher removes what is too old, but only when there is something to publish.
local time = redis.call('TIME')
local limit = (tonumber(time[1]) - ttl) * 1000000 + tonumber(time[2])

local keys = redis.call('ZRANGE', order, 0, -1, 'WITHSCORES')
local newest = math.max(last, tonumber(keys[#keys]) or 0)
if after > newest then after = 0 end

local names, found, complete, running = {}, {}, newest, {}
for i = 1, #keys, 2 do
  local key, id = keys[i], tonumber(keys[i + 1])
  local has_ended = ids[key]
  if not has_ended or has_ended >= limit then
    names[#names + 1] = key
    local wanted = id > after and room > 0
    local entry = (wanted or not has_ended) and redis.call('HGET', entries, key)
    if entry and not has_ended then
      local what, worker = string.match(entry, '^{"id":"%d+","(%l+)":"([^"]+)"')
      if what == 'worker' or what == 'lost' then
        running[#running + 1] = key
        running[#running + 1] = what
        running[#running + 1] = worker
      end
    end
    if entry and wanted then
      found[#found + 1] = entry
      room = room - #entry
      complete = room > 0 and newest or id
    end
  end
end
return {string.format('%.0f', newest), string.format('%.0f', complete), names, found, running}
