-- Counts whole shards anew and compares with what the queue believes: for tests, which may walk everything.
--
--   redis-cli -s SOCKET --eval tests/lib/recount.lua '{h0}' '{h1}' ...
--
-- KEYS: shard tags. Reply: one line per difference; none when all is as it should be. Leases must not be on the
-- move meanwhile. History that retention has removed makes r1..r6 incomparable: ARGV[1] 'partial' leaves them out.
local tag
local faults = {}

local function fault(...)
    faults[#faults + 1] = string.format(...)
end

local function expect(what, counted, believed)
    if counted ~= tonumber(believed or 0) then
        fault('%s: counted %s, the queue says %s', what, counted, believed or 'nothing')
    end
end

local function number_at(text, at)
    local value, scale = 0, 1
    repeat
        local byte = string.byte(text, at)
        value, scale, at = value + byte % 128 * scale, scale * 128, at + 1
    until byte < 128
    return value, at
end

local function skip_text(text, at)
    local length, start = number_at(text, at)
    return start + length
end

-- Recipients of a stored batch by state.
local function recipients(text)
    local at = string.find(text, '\n', string.find(text, '\n', 1, true) + 1, true) + 2
    local _, count, states = nil, nil, {[0] = 0, 0, 0, 0, 0, 0, 0}
    _, at = number_at(text, at)
    for _ = 1, 3 do
        at = skip_text(text, at)
    end
    for _ = 1, 3 do
        _, at = number_at(text, at)
    end
    count, at = number_at(text, at)
    for _ = 1, count do
        local state
        state, at = number_at(text, skip_text(text, at))
        _, at = number_at(text, at)
        at = skip_text(text, at)
        states[state] = states[state] + 1
    end
    return states
end

local function scan(pattern)
    local found, cursor = {}, '0'
    repeat
        local reply = redis.call('SCAN', cursor, 'MATCH', pattern, 'COUNT', 1000)
        cursor = reply[1]
        for _, key in ipairs(reply[2]) do
            found[key] = true
        end
    until cursor == '0'
    return found
end

local function pairs_of_list(list)
    local map = {}
    for i = 1, #list, 2 do
        map[list[i]] = list[i + 1]
    end
    return map
end

local function count_shard()
    local leases = pairs_of_list(redis.call('HGETALL', tag .. ':t'))
    local lease_ends = pairs_of_list(redis.call('ZRANGE', tag .. ':l', 0, -1, 'WITHSCORES'))
    local open = pairs_of_list(redis.call('ZRANGE', tag .. ':x', 0, -1, 'WITHSCORES'))
    local dead = pairs_of_list(redis.call('ZRANGE', tag .. ':z', 0, -1, 'WITHSCORES'))
    local counters = pairs_of_list(redis.call('HGETALL', tag .. ':k'))
    for entry in pairs(leases) do
        if not lease_ends[entry] then
            fault('%s is leased without an end', entry)
        end
    end
    for entry in pairs(lease_ends) do
        if not leases[entry] then
            fault('%s has an end of a lease and no lease', entry)
        end
    end

    local live, lists, sets = {}, {}, {}
    local bytes, dead_bytes, history = 0, 0, 0
    local sums = {[0] = 0, 0, 0, 0, 0, 0, 0}

    local function count_in(map, key)
        map[key] = (map[key] or 0) + 1
    end

    -- A batch that waits must stand where its state says.
    local function check_place(entry, state, pair, client)
        if leases[entry] then
            return
        end
        if state == 'W' or state == 'H' then
            local key = tag .. (state == 'W' and ':d:' or ':h:') .. pair
            count_in(sets, key)
            if not redis.call('ZSCORE', key, entry) then
                fault('%s is %s and not in %s', entry, state, key)
            end
            return
        end
        count_in(live, pair)
        local key = tag .. ':r:' .. pair .. '|' .. client
        local found = redis.call('LPOS', key, entry)
        if state == 'E' then
            found = redis.call('LPOS', tag .. ':y:' .. pair, entry)
        elseif found and not redis.call('LPOS', tag .. ':c:' .. pair, client) then
            fault('%s: client %s is not in the rotation', entry, client)
        end
        if not found then
            fault('%s is %s and in no list', entry, state)
        end
    end

    local function count_batch(id, n, suffix)
        local entry = id .. '/' .. n .. suffix
        local text = redis.call('GET', tag .. ':q:' .. entry)
        if not text then
            fault('%s has no record', entry)
            return false, false
        end
        local state, pair, client = string.match(text, '^(%a)%d+ ([^|\n]*|[^|\n]*)|([^\n]*)\n')
        local states = recipients(text)
        for i = 0, 6 do
            sums[i] = sums[i] + states[i]
        end
        if state == 'D' then
            history = history + 200 + #text
            if states[0] > 0 then
                fault('%s is done with recipients left', entry)
            end
            return false, states[2] + states[3] + states[6] > 0
        end
        check_place(entry, state, pair, client)
        return true, false
    end

    for key in pairs(scan(tag .. ':m:*')) do
        local id = string.sub(key, #tag + 4)
        local count, suffix, charge = string.match(redis.call('GET', key), '^(%d+)(%**%d*) (%d+)\n')
        local waiting, ended_dead = 0, 0
        for n = 0, count - 1 do
            local is_open, is_dead = count_batch(id, n, suffix)
            waiting = waiting + (is_open and 1 or 0)
            ended_dead = ended_dead + (is_dead and 1 or 0)
        end
        if waiting > 0 then
            bytes = bytes + charge
            if not open[id] then
                fault('%s has open batches and is not open', id)
            end
            if tonumber(count) > 1 then
                expect(id .. ' open batches', waiting, redis.call('GET', tag .. ':o:' .. id))
            end
        else
            history = history + 600
            if open[id] then
                fault('%s is open and has no open batch', id)
            end
            if redis.call('EXISTS', tag .. ':o:' .. id) == 1 then
                fault('%s is finished and has a count of open batches', id)
            end
        end
        open[id] = nil
        local has_body = redis.call('EXISTS', tag .. ':b:' .. id) == 1
        if has_body ~= (waiting > 0 or dead[id] ~= nil) then
            fault('%s: %s', id, has_body and 'its body was forgotten' or 'its body is missing')
        end
        if dead[id] then
            dead_bytes = dead_bytes + (waiting > 0 and 0 or charge)
            expect(id .. ' dead batches', ended_dead, redis.call('HGET', tag .. ':u', id))
            dead[id] = nil
        elseif redis.call('HEXISTS', tag .. ':u', id) == 1 then
            fault('%s has dead batches and is no dead letter', id)
        end
    end
    for id in pairs(open) do
        fault('%s is open and has no record', id)
    end
    for id in pairs(dead) do
        fault('%s is a dead letter and has no record', id)
    end

    for key in pairs(scan(tag .. ':[ry]:*')) do
        local pair = string.match(key, ':r:([^|]*|[^|]*)|') or string.match(key, ':y:(.*)$')
        lists[pair] = (lists[pair] or 0) + redis.call('LLEN', key)
    end
    for pair, length in pairs(lists) do
        expect('stale entries of ' .. pair, length - (live[pair] or 0), counters['stale|' .. pair])
    end
    for key, value in pairs(counters) do
        local pair = string.match(key, '^stale|(.*)$')
        if pair and not lists[pair] then
            expect('stale entries of ' .. pair, 0, value)
        end
    end
    for key in pairs(scan(tag .. ':[dh]:*')) do
        expect(key, sets[key] or 0, redis.call('ZCARD', key))
    end
    expect('bytes', bytes, counters.bytes)
    expect('bytes of dead letters', dead_bytes, counters.dead)
    expect('bytes of the history', history, counters.history)
    if ARGV[1] ~= 'partial' then
        local all = 0
        for i = 0, 6 do
            all = all + sums[i]
            if i > 0 then
                expect('recipients of state ' .. i, sums[i], counters['r' .. i])
            end
        end
        expect('recipients accepted', all, counters.r0)
    end
end

for i = 1, #KEYS do
    tag = KEYS[i]
    count_shard()
end
return faults
