-- Reads the entries of one user after an id, in the order of their ids, at one moment.
--
-- KEYS[1] order    zset   key -> id of its newest entry
-- KEYS[2] entries  hash   key -> newest entry (JSON)
-- KEYS[3] ended    zset   key -> id, of those entries that the bounds may remove
-- KEYS[4] last     string the last id issued
--
-- ARGV[1] after    an id; one above the newest issued counts as none, that is 0
-- ARGV[2] room     bytes of entries after which the answer stops; at least one entry is given
-- ARGV[3] ttl      seconds that an entry is kept after its task has ended; what is older is left out
--
-- Returns the newest id issued, the id up to which the entries are complete, the keys of the whole history, the entries.

local order, entries, ended, last = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local after, room, ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

-- The publisher removes what is too old, but only when there is something to publish.
local too_old = {}
local time = redis.call('TIME')
local limit = string.format('(%.0f', (tonumber(time[1]) - ttl) * 1000000 + tonumber(time[2]))
for _, key in ipairs(redis.call('ZRANGEBYSCORE', ended, '-inf', limit)) do
  too_old[key] = true
end

local keys = redis.call('ZRANGE', order, 0, -1, 'WITHSCORES')
local newest = math.max(tonumber(redis.call('GET', last)) or 0, tonumber(keys[#keys]) or 0)
if after > newest then after = 0 end

local names, found, complete = {}, {}, newest
for i = 1, #keys, 2 do
  local key, id = keys[i], tonumber(keys[i + 1])
  if not too_old[key] then names[#names + 1] = key end
  if not too_old[key] and id > after and room > 0 then
    local entry = redis.call('HGET', entries, key)
    if entry then
      found[#found + 1] = entry
      room = room - #entry
      complete = room > 0 and newest or id
    end
  end
end
return {string.format('%.0f', newest), string.format('%.0f', complete), names, found}
