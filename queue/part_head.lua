-- The head of a stored batch: state, pair, client, due_ms (14 digits), lane, backend; nil when it is none.
local function batch_head(text)
    local state, due, lane, backend, client =
        string.match(text, '^(%a)%d%d%d%d%d%d%d(%d%d%d%d%d%d%d%d%d%d%d%d%d%d) ([^|\n]*)|([^|\n]*)|([^\n]*)\n')
    if state then
        return state, lane .. '|' .. backend, client, due, lane, backend
    end
end
