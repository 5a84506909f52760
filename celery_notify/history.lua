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
-- ARGV[4] kept     seconds that a history is kept after its last event while something in it has not ended
--
-- Returns the newest id issued, the id up to which the entries are complete, whether what follows of the whole history
-- is told, its keys, the entries, and of its tasks that run, not only those in the entries: key, "worker" or, if that is
-- lost, "lost", who it is, and the id of the entry.

local after, room = tonumber(ARGV[1]), tonumber(ARGV[2])
local ttl, kept = tonumber(ARGV[3]), tonumber(ARGV[4])

-- Entries that are looked at in one step, and running tasks that are looked after: the newest ones.
local STEP, WATCHED = 100, 1000

local newest = math.max(whole(kept), tonumber(redis.call('ZRANGE', order, -1, -1, 'WITHSCORES')[2]) or 0)
local above = after > newest
if above then after = 0 end

-- The publisher removes what is too old, but only when there is something to publish.
local time = redis.call('TIME')
local limit = string.format('(%.0f', (tonumber(time[1]) - ttl) * 1000000 + tonumber(time[2]))
local too_old = {}
for _, key in ipairs(redis.call('ZRANGE', ended, '-inf', limit, 'BYSCORE')) do too_old[key] = true end

local found, complete = {}, after
repeat
  local some = redis.call('ZRANGE', order, string.format('(%.0f', complete), '+inf', 'BYSCORE', 'LIMIT', 0, STEP, 'WITHSCORES')
  for i = 1, #some, 2 do
    local entry = room > 0 and not too_old[some[i]] and redis.call('HGET', entries, some[i])
    if room > 0 then complete = tonumber(some[i + 1]) end
    if entry then
      found[#found + 1] = entry
      room = room - #entry
    end
  end
until room <= 0 or #some == 0
if room > 0 then complete = newest end

-- What is true of the whole history is told with its last page, and to those who have been told more than it holds.
local names, running = {}, {}
local whole_told = complete == newest or above
if whole_told then
  local has_ended = {}
  for _, key in ipairs(redis.call('ZRANGE', ended, 0, -1)) do has_ended[key] = true end
  local keys = redis.call('ZRANGE', order, 0, -1)
  for _, key in ipairs(keys) do
    if not too_old[key] then names[#names + 1] = key end
  end
  for i = #keys, 1, -1 do
    if #running >= 4 * WATCHED then break end
    local entry = not has_ended[keys[i]] and redis.call('HGET', entries, keys[i])
    if entry then
      local id, what, worker = string.match(entry, '^{"id":"(%d+)","(%l+)":"([^"]+)"')
      if what == 'worker' or what == 'lost' then
        running[#running + 1] = keys[i]
        running[#running + 1] = what
        running[#running + 1] = worker
        running[#running + 1] = id
      end
    end
  end
end
return {string.format('%.0f', newest), string.format('%.0f', complete), whole_told and 1 or 0, names, found, running}
