-- One message with its batches and their leases.
--
-- KEYS: shard tag. ARGV: id. Reply: nil, or {stored message, stored batch, lease, stored batch, lease, ...};
-- a batch that is missing is ''.
local tag, id = KEYS[1], ARGV[1]
local message = redis.call('GET', tag .. ':m:' .. id)
if not message then
    return false
end
local count, suffix = string.match(message, '^(%d+)(%**%d*) ?%d*\n')
if not count then
    return {message}
end
local reply = {message}
for first = 0, count - 1, 1000 do
    local keys, entries = {}, {}
    for n = first, math.min(first + 999, count - 1) do
        local entry = id .. '/' .. n .. suffix
        entries[#entries + 1] = entry
        keys[#keys + 1] = tag .. ':q:' .. entry
    end
    local stored = redis.call('MGET', unpack(keys))
    local leased = redis.call('HMGET', tag .. ':t', unpack(entries))
    for i = 1, #keys do
        reply[#reply + 1] = stored[i] or ''
        reply[#reply + 1] = leased[i] or ''
    end
end
return reply
