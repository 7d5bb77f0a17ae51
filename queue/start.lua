-- Marks leased batches STARTED.
--
-- KEYS: shard tag. ARGV: entry, token, entry, token, ... Reply: how many leases were lost.
local tag = KEYS[1]
local entries = {}
for i = 1, #ARGV, 2 do
    entries[#entries + 1] = ARGV[i]
end
local leased = redis.call('HMGET', tag .. ':t', unpack(entries))
local marks, lost = {}, 0
for i = 1, #entries do
    local token, lease = ARGV[2 * i], leased[i]
    if lease and string.sub(lease, 2, #token + 2) == token .. '|' then
        marks[#marks + 1] = entries[i]
        marks[#marks + 1] = 's' .. string.sub(lease, 2)
    else
        lost = lost + 1
    end
end
if #marks > 0 then
    redis.call('HSET', tag .. ':t', unpack(marks))
end
return lost
