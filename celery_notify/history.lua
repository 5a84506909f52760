-- Reads the entries of one user after an id, in the order of their ids, at one moment.
--
-- KEYS[1] order    zset   key -> id of its newest entry
-- KEYS[2] entries  hash   key -> newest entry (JSON)
-- KEYS[3] last     string the last id issued
--
-- ARGV[1] after    an id; one above the newest issued counts as none, that is 0
-- ARGV[2] room     bytes of entries after which the answer stops; at least one entry is given
--
-- Returns the newest id issued, the id up to which the entries are complete, the keys of the whole history, the entries.

local order, entries, last = KEYS[1], KEYS[2], KEYS[3]
local after, room = tonumber(ARGV[1]), tonumber(ARGV[2])

local keys = redis.call('ZRANGE', order, 0, -1, 'WITHSCORES')
local newest = math.max(tonumber(redis.call('GET', last)) or 0, tonumber(keys[#keys]) or 0)
if after > newest then after = 0 end

local names, found, complete = {}, {}, newest
for i = 1, #keys, 2 do
  local key, id = keys[i], tonumber(keys[i + 1])
  names[#names + 1] = key
  if id > after and room > 0 then
    local entry = redis.call('HGET', entries, key)
    if entry then
      found[#found + 1] = entry
      room = room - #entry
      complete = room > 0 and newest or id
    end
  end
end
return {string.format('%.0f', newest), string.format('%.0f', complete), names, found}
