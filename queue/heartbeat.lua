-- Extends leases, and marks STARTED again what its holder has started: a start written to a connection that
-- broke may never have arrived.
--
-- KEYS: shard tag. ARGV: lease_ms, then entry, token, 's' or 'c', ... Reply: per lease 1 (extended) or 0 (lost).
local tag = KEYS[1]
local entries = {}
for i = 2, #ARGV, 3 do
    entries[#entries + 1] = ARGV[i]
end
local leased = redis.call('HMGET', tag .. ':t', unpack(entries))
local time = redis.call('TIME')
local lease_end = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1])
local ends, marks, replies = {}, {}, {}
for i = 1, #entries do
    local token, lease = ARGV[3 * i], leased[i]
    if lease and string.sub(lease, 2, #token + 2) == token .. '|' then
        ends[#ends + 1] = lease_end
        ends[#ends + 1] = entries[i]
        replies[i] = 1
        if ARGV[3 * i + 1] == 's' and string.sub(lease, 1, 1) ~= 's' then
            marks[#marks + 1] = entries[i]
            marks[#marks + 1] = 's' .. string.sub(lease, 2)
        end
    else
        replies[i] = 0
    end
end
if #ends > 0 then
    redis.call('ZADD', tag .. ':l', 'XX', unpack(ends))
end
if #marks > 0 then
    redis.call('HSET', tag .. ':t', unpack(marks))
end
return replies
