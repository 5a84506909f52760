-- What a job's tasks come to: tally.py keeps the same numbers in Python. Comes between repair.lua and publish.lua, which
-- has all this made only for a job of several tasks: it takes as long as a tenth of an event.
--
-- KEYS[4] job      hash   of a job of several tasks, for a task event only
--                  'sums' -> NAMES below, as numbers
--                  '=' .. task id -> attempt, state, weight, fraction and whether it is hidden, of each of its tasks,
--                         which outlive their entries: a task counts once, whatever is told of it and how often
--                  a number -> a task that has ended, or waits for its retry, and whose entry makes room when this
--                         number's turn comes again
--                  'failure' -> the first task that failed: its entry says why the job did, and stays as long as any

local job = KEYS[4]

local function tally()
  local NAMES = {'tasks', 'ended', 'failed', 'revoked', 'hidden', 'weight', 'done', 'part', 'fraction', 'turn'}
  local FAILED = {FAILURE = true, REJECTED = true}
  -- Seconds that a job is remembered once all of its tasks have ended.
  local REMEMBERED = 3600

  -- Returns a job's sums from how they are stored.
  local function read_sums(text)
    local sums, n = {}, 0
    for number in string.gmatch(text, '%S+') do
      n = n + 1
      sums[NAMES[n]] = tonumber(number)
    end
    return sums
  end

  local function member(id)
    local text = redis.call('HGET', job, '=' .. id)
    if not text then return nil end
    local attempt, state, weight, fraction, hidden = string.match(text, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
    return {attempt = tonumber(attempt), state = state, weight = tonumber(weight), fraction = tonumber(fraction),
      hidden = tonumber(hidden)}
  end

  local function add(sums, one, times)
    sums.weight = sums.weight + times * one.weight
    sums.done = sums.done + times * one.weight * one.fraction
    sums.ended = sums.ended + (FINAL[one.state] and times or 0)
    sums.failed = sums.failed + (FAILED[one.state] and times or 0)
    sums.revoked = sums.revoked + (one.state == 'REVOKED' and times or 0)
    sums.hidden = sums.hidden + times * one.hidden
  end

  -- Which part of a task is done, 0 to 1: whatever it said, all of it once it has ended, but for one that was revoked.
  local function fraction_of(state, current, total)
    if FINAL[state] and state ~= 'REVOKED' then return 1 end
    current, total = tonumber(current), tonumber(total)
    if not current or not total or not (total > 0) then return 0 end
    return math.min(1, math.max(0, current / total))
  end

  -- Counts a task as what it is now. What an earlier attempt has reached it keeps: its work is done again.
  local function count(sums, id, attempt, state, weight, current, total, hidden)
    local now = {state = state, weight = weight, fraction = fraction_of(state, current, total), hidden = hidden}
    local before = member(id)
    if before then
      add(sums, before, -1)
      now.fraction = math.max(now.fraction, before.fraction)
    else
      sums.tasks = sums.tasks + 1
    end
    add(sums, now, 1)
    redis.call('HSET', job, '=' .. id,
      string.format('%d %s %.17g %.17g %d', attempt, state, weight, now.fraction, hidden))
    -- What is told grows by that part of what is left to be told which has been done of what was left to do: it reaches 1
    -- with the last task, also where tasks became known on the way, and never falls.
    local part = math.min(1, sums.done / sums.weight)
    if part > sums.part then sums.fraction = sums.fraction + (1 - sums.fraction) * (part - sums.part) / (1 - sums.part) end
    sums.part = part
  end

  local function count_entry(sums, id, task)
    local weight = type(task.weight) == 'number' and task.weight > 0 and task.weight < math.huge and task.weight or 1
    if string.find(task.state, '^%u+$') then
      count(sums, id, task.attempt, task.state, weight, task.current, task.total, 0)
    end
  end

  -- Returns the sums of a job that has none. Where numbers were told before, Redis has evicted them, and what the entries
  -- say must do.
  local function begin(job_id, key, was)
    local named_by = key ~= job_id and redis.call('HGET', entries, job_id)
    named_by = named_by and task_in(named_by)
    local lost = was and was.job or named_by and named_by.job
    local sums = {}
    for _, name in ipairs(NAMES) do sums[name] = 0 end
    if type(lost) == 'table' then
      local stored, told = redis.call('HGETALL', entries), 0
      for i = 1, #stored, 2 do
        local task = task_in(stored[i + 1])
        if task and task.job_id == job_id then
          count_entry(sums, stored[i], task)
          told = math.max(told, type(task.job) == 'table' and tonumber(task.job.fraction) or 0)
        end
      end
      sums.fraction = math.min(1, told)
    elseif named_by then
      count_entry(sums, job_id, named_by)
    end
    return sums
  end

  -- Whether a task that is new is only to be counted: one more that waits, where as many as `most` do. Each time the job
  -- has grown to twice its size one is shown, so that a page learns of it.
  local function hides(sums, state, most)
    return state == 'PENDING' and sums.tasks - sums.ended - sums.hidden >= most and math.frexp(sums.tasks + 1) ~= 0.5
  end

  -- Returns the task whose entry is to make room for this one's, now that it has ended or waits for its retry.
  local function gives_up(sums, id, state, most)
    if not FINAL[state] and state ~= 'RETRY' then return nil end
    if FAILED[state] and not redis.call('HGET', job, 'failure') then
      redis.call('HSET', job, 'failure', id)
      return nil
    end
    sums.turn = sums.turn + 1
    local slot = string.format('%d', sums.turn % most)
    local oldest = redis.call('HGET', job, slot)
    redis.call('HSET', job, slot, id)
    local found = oldest and oldest ~= id and member(oldest)
    return found and (FINAL[found.state] or found.state == 'RETRY') and oldest or nil
  end

  -- Lets the first failure's entry be newer to the bounds than the job's newest end, by less than ids differ.
  local function keep_failure(id)
    local failure = redis.call('HGET', job, 'failure')
    if failure and redis.call('ZSCORE', ended, failure) then redis.call('ZADD', ended, id .. '.5', failure) end
  end

  local function save(sums, kept_for)
    redis.call('HSET', job, 'sums', string.format('%d %d %d %d %d %.17g %.17g %.17g %.17g %d', sums.tasks, sums.ended,
      sums.failed, sums.revoked, sums.hidden, sums.weight, sums.done, sums.part, sums.fraction, sums.turn))
    redis.call('PEXPIRE', job, (sums.ended == sums.tasks and REMEMBERED or kept_for) * 1000)
  end

  -- What an event says of its job, as a member of a JSON object. The fraction goes down to a part of 10 000; adding and
  -- subtracting leaves errors, which must not keep a whole from being one.
  local function numbers_of(sums)
    return string.format(',"job":{"tasks":%d,"ended":%d,"failed":%d,"revoked":%d,"hidden":%d,"fraction":%.4f}',
      sums.tasks, sums.ended, sums.failed, sums.revoked, sums.hidden, math.floor(sums.fraction * 10000 + 0.001) / 10000)
  end

  return {
    read = read_sums, begin = begin, member = member, hides = hides, count = count, gives_up = gives_up,
    keep_failure = keep_failure, save = save, numbers_of = numbers_of,
  }
end

