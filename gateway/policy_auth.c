/* Credentials: a cache of digests in front of crypt(3) on the thread pool.
 *
 * A caller is a policy_auth; what is computed is a policy_check. Many callers with the same
 * credentials wait for one check; the check belongs to the cache's queue until it starts, and to
 * the pool while it runs. What must stay true:
 *
 *   - while a check runs, the pool thread alone touches `secret`, `found` and crypt's data; the
 *     loop touches the list of waiters only;
 *   - a policy_auth is in exactly one place: a check's waiters, or the loop's tasks (answer known);
 *   - cache entries belong to the policy the cache holds; another policy empties the cache. */
#include "gateway/policy.h"

#include "gateway/base/codec.h"
#include "gateway/base/tls.h"
#include "gateway/policy_private.h"

#include <crypt.h>

#define SALT_BYTES 16
#define DIGEST_BYTES 32
#define CACHE_SETS 256
#define CACHE_WAYS 4
#define KEEP_SUCCESS_MS ((int64_t)600000)
#define KEEP_FAILURE_MS ((int64_t)5000)
#define RUNNING_MAX 2

/* What is hashed when no client's own hash can be: yescrypt as policy_hash() makes it. */
static const char dummy_hash[] =
    "$y$j9T$iI7reL462oOEZ5Tv3wyVM1$BsFlO9LFr7zLcY3qLUwZriT9hhU3bNYG6q4aX2xKSjD";

enum secret_kind {
    SECRET_PASSWORD = 'p',
    SECRET_KEY = 'k',
};

struct cache_entry {
    unsigned char digest[DIGEST_BYTES];
    int64_t until_ms;                   /* 0: never used */
    const struct policy_client *client; /* NULL: wrong */
};

struct policy_check {
    struct policy_check *next;
    struct policy_cache *cache; /* NULL once the cache is gone */
    struct policy *policy;
    unsigned char digest[DIGEST_BYTES];
    enum secret_kind kind;
    const struct policy_client *candidate; /* password: the client of that user, or NULL */
    char *secret;                          /* NUL-terminated */
    size_t secret_len;
    const struct policy_client *found;
    struct policy_auth *waiters;
    bool runs;
};

struct policy_auth {
    struct policy_auth *next;
    struct policy_check *check; /* NULL: the answer is known and on its way */
    struct loop_task task;
    const struct policy_client *client;
    policy_auth_cb cb;
    void *ctx;
};

struct policy_cache {
    struct loop *loop;
    struct policy *policy; /* whose clients the entries name */
    unsigned char salt[SALT_BYTES];
    struct policy_check *checks; /* queued and running, oldest first */
    size_t running;
    struct cache_entry entries[CACHE_SETS][CACHE_WAYS];
};

/* ---- The cache ---- */

struct policy_cache *policy_cache_new(struct loop *loop)
{
    struct policy_cache *cache = mem_zero(sizeof *cache);
    cache->loop = loop;
    codec_random(cache->salt, sizeof cache->salt);
    return cache;
}

static void check_free(struct policy_check *check)
{
    ASSERT(check->waiters == NULL);
    mem_wipe(check->secret, check->secret_len);
    mem_free(check->secret);
    policy_unref(&check->policy);
    mem_free(check);
}

static void auth_free(struct policy_auth *auth)
{
    loop_task_cancel(&auth->task);
    mem_free(auth);
}

void policy_cache_free(struct policy_cache **cache)
{
    struct policy_cache *c = *cache;
    if (c == NULL) {
        return;
    }
    *cache = NULL;
    while (c->checks != NULL) {
        struct policy_check *check = c->checks;
        c->checks = check->next;
        check->cache = NULL;
        /* Who still waits was promised an answer or a cancel; the caller must have cancelled. */
        ASSERT(check->waiters == NULL);
        if (!check->runs) {
            check_free(check);
        }
    }
    policy_unref(&c->policy);
    mem_wipe(c, sizeof *c);
    mem_free(c);
}

static void cache_use_policy(struct policy_cache *cache, struct policy *policy)
{
    if (cache->policy == policy) {
        return;
    }
    policy_unref(&cache->policy);
    cache->policy = policy_ref(policy);
    mem_wipe(cache->entries, sizeof cache->entries);
}

static bool digest_equal(const unsigned char *a, const unsigned char *b)
{
    unsigned difference = 0;
    for (size_t i = 0; i < DIGEST_BYTES; i++) {
        difference |= (unsigned)(a[i] ^ b[i]);
    }
    return difference == 0;
}

static struct cache_entry *cache_find(struct policy_cache *cache, const unsigned char *digest)
{
    struct cache_entry *set = cache->entries[digest[0]];
    int64_t now_ms = loop_now_ms(cache->loop);
    for (size_t i = 0; i < CACHE_WAYS; i++) {
        if (set[i].until_ms > now_ms && digest_equal(set[i].digest, digest)) {
            return &set[i];
        }
    }
    return NULL;
}

/* Takes the place of the entry of the set that would end first, so that a run of wrong passwords
 * pushes out other wrong ones before it touches a good one. */
static void cache_put(struct policy_cache *cache, const unsigned char *digest,
                      const struct policy_client *client)
{
    struct cache_entry *set = cache->entries[digest[0]];
    struct cache_entry *slot = &set[0];
    for (size_t i = 1; i < CACHE_WAYS; i++) {
        if (set[i].until_ms < slot->until_ms) {
            slot = &set[i];
        }
    }
    int64_t keep_ms = client != NULL ? KEEP_SUCCESS_MS : KEEP_FAILURE_MS;
    slot->until_ms = loop_now_ms(cache->loop) + keep_ms;
    slot->client = client;
    memcpy(slot->digest, digest, DIGEST_BYTES);
}

/* The key of a pair of credentials: SHA-256(salt, kind, user, NUL, secret). */
static int digest_of(const struct policy_cache *cache, enum secret_kind kind, struct span user,
                     struct span secret, unsigned char out[DIGEST_BYTES])
{
    struct buf text;
    size_t size = SALT_BYTES + 2 + user.len + secret.len;
    buf_init_secret(&text, size);
    char *room = NULL;
    int rc = buf_reserve(&text, size, &room);
    if (rc == ERR_OK) {
        memcpy(room, cache->salt, SALT_BYTES);
        room[SALT_BYTES] = (char)kind;
        if (user.len > 0) {
            memcpy(room + SALT_BYTES + 1, user.data, user.len);
        }
        room[SALT_BYTES + 1 + user.len] = '\0';
        if (secret.len > 0) {
            memcpy(room + SALT_BYTES + 2 + user.len, secret.data, secret.len);
        }
        buf_commit(&text, size);
        tls_sha256(buf_span(&text), out);
    }
    buf_release(&text);
    return rc;
}

/* ---- On the thread pool ---- */

/* Whether `secret` hashes to `hash`; how long it takes does not tell where they differ. */
static bool hash_matches(const char *secret, const char *hash, struct crypt_data *data)
{
    memset(data, 0, sizeof *data);
    const char *made = crypt_r(secret, hash, data);
    size_t len = strlen(hash);
    /* crypt(3) reports failure with a text that starts with '*', which no hash of ours does. */
    if (made == NULL || made[0] == '*' || strlen(made) != len) {
        return false;
    }
    unsigned difference = 0;
    for (size_t i = 0; i < len; i++) {
        difference |= (unsigned)((unsigned char)made[i] ^ (unsigned char)hash[i]);
    }
    return difference == 0;
}

static const char *hash_of_candidate(const struct policy_check *check)
{
    if (check->candidate != NULL && check->candidate->conf->password_hash != NULL) {
        return check->candidate->conf->password_hash;
    }
    return NULL;
}

/* An unknown user is checked against the first hash there is, so that he takes as long as a known
 * one with a wrong password. */
static const char *hash_for_nobody(const struct policy *policy)
{
    for (size_t i = 0; i < policy->client_count; i++) {
        if (policy->clients[i].conf->password_hash != NULL) {
            return policy->clients[i].conf->password_hash;
        }
    }
    return dummy_hash;
}

static void check_password(struct policy_check *check, struct crypt_data *data)
{
    const char *hash = hash_of_candidate(check);
    bool matches = hash_matches(check->secret, hash != NULL ? hash : hash_for_nobody(check->policy),
                                data);
    check->found = matches && hash != NULL ? check->candidate : NULL;
}

static void check_key(struct policy_check *check, struct crypt_data *data)
{
    for (size_t i = 0; i < check->policy->client_count && check->found == NULL; i++) {
        const struct policy_client *client = &check->policy->clients[i];
        if (client->conf->api_key_hash != NULL &&
            hash_matches(check->secret, client->conf->api_key_hash, data)) {
            check->found = client;
        }
    }
}

static void check_work(void *ctx)
{
    struct policy_check *check = ctx;
    struct crypt_data *data = mem_zero(sizeof *data);
    /* crypt(3) works on C strings: a NUL inside would cut the secret and let its head pass. */
    if (memchr(check->secret, '\0', check->secret_len) == NULL) {
        switch (check->kind) {
        case SECRET_PASSWORD:
            check_password(check, data);
            break;
        case SECRET_KEY:
            check_key(check, data);
            break;
        }
    }
    mem_wipe(data, sizeof *data);
    mem_free(data);
    mem_wipe(check->secret, check->secret_len);
}

/* ---- On the loop ---- */

static void start_checks(struct policy_cache *cache);

static void answer_waiters(struct policy_check *check)
{
    while (check->waiters != NULL) {
        struct policy_auth *auth = check->waiters;
        check->waiters = auth->next;
        policy_auth_cb cb = auth->cb;
        void *ctx = auth->ctx;
        auth_free(auth);
        cb(ctx, check->found);
    }
}

static void check_done(void *ctx)
{
    struct policy_check *check = ctx;
    struct policy_cache *cache = check->cache;
    if (cache != NULL) {
        struct policy_check **link = &cache->checks;
        while (*link != check) {
            link = &(*link)->next;
        }
        *link = check->next;
        cache->running--;
        if (cache->policy == check->policy) {
            cache_put(cache, check->digest, check->found);
        }
        start_checks(cache);
    }
    answer_waiters(check);
    check_free(check);
}

static void start_checks(struct policy_cache *cache)
{
    for (struct policy_check *check = cache->checks; check != NULL && cache->running < RUNNING_MAX;
         check = check->next) {
        if (!check->runs) {
            check->runs = true;
            cache->running++;
            loop_work(cache->loop, check_work, check_done, check);
        }
    }
}

static void answer_known(void *ctx)
{
    struct policy_auth *auth = ctx;
    policy_auth_cb cb = auth->cb;
    void *user = auth->ctx;
    const struct policy_client *client = auth->client;
    auth_free(auth);
    cb(user, client);
}

static void answer_later(struct policy_cache *cache, struct policy_auth *auth,
                         const struct policy_client *client)
{
    auth->client = client;
    loop_defer(cache->loop, &auth->task, LOOP_TASK_QUEUE, answer_known, auth);
}

static struct policy_check *check_running(struct policy_cache *cache, struct policy *policy,
                                          const unsigned char *digest)
{
    for (struct policy_check *check = cache->checks; check != NULL; check = check->next) {
        if (check->policy == policy && digest_equal(check->digest, digest)) {
            return check;
        }
    }
    return NULL;
}

static struct policy_check *check_new(struct policy_cache *cache, struct policy *policy,
                                      enum secret_kind kind, struct span secret)
{
    struct policy_check *check = mem_zero(sizeof *check);
    check->cache = cache;
    check->policy = policy_ref(policy);
    check->kind = kind;
    check->secret = mem_dup(secret);
    check->secret_len = secret.len;
    struct policy_check **link = &cache->checks;
    while (*link != NULL) {
        link = &(*link)->next;
    }
    *link = check;
    return check;
}

static const struct policy_client *client_of_user(const struct policy *policy, struct span user)
{
    for (size_t i = 0; i < policy->client_count; i++) {
        const char *name = policy->clients[i].conf->user;
        if (name != NULL && span_eq(span_of(name), user)) {
            return &policy->clients[i];
        }
    }
    return NULL;
}

/* Secrets longer than any hash method takes, and users longer than any name, are wrong unheard. */
#define SECRET_BYTES_MAX ((size_t)512)

static struct policy_auth *auth_start(struct policy_cache *cache, struct policy *policy,
                                      enum secret_kind kind, struct span user, struct span secret,
                                      policy_auth_cb cb, void *ctx)
{
    struct policy_auth *auth = mem_zero(sizeof *auth);
    auth->cb = cb;
    auth->ctx = ctx;
    cache_use_policy(cache, policy);
    unsigned char digest[DIGEST_BYTES];
    if (secret.len == 0 || secret.len > SECRET_BYTES_MAX || user.len > SECRET_BYTES_MAX ||
        digest_of(cache, kind, user, secret, digest) != ERR_OK) {
        answer_later(cache, auth, NULL);
        return auth;
    }
    const struct cache_entry *entry = cache_find(cache, digest);
    if (entry != NULL) {
        answer_later(cache, auth, entry->client);
        return auth;
    }
    struct policy_check *check = check_running(cache, policy, digest);
    if (check == NULL) {
        check = check_new(cache, policy, kind, secret);
        memcpy(check->digest, digest, sizeof digest);
        check->candidate = kind == SECRET_PASSWORD ? client_of_user(policy, user) : NULL;
    }
    auth->check = check;
    auth->next = check->waiters;
    check->waiters = auth;
    start_checks(cache);
    return auth;
}

struct policy_auth *policy_auth_password(struct policy_cache *cache, struct policy *policy,
                                         struct span user, struct span password, policy_auth_cb cb,
                                         void *ctx)
{
    return auth_start(cache, policy, SECRET_PASSWORD, user, password, cb, ctx);
}

struct policy_auth *policy_auth_key(struct policy_cache *cache, struct policy *policy,
                                    struct span key, policy_auth_cb cb, void *ctx)
{
    return auth_start(cache, policy, SECRET_KEY, (struct span){0}, key, cb, ctx);
}

const struct policy_client *policy_known_key(struct policy_cache *cache, struct policy *policy,
                                             struct span key)
{
    unsigned char digest[DIGEST_BYTES];
    if (cache->policy != policy || key.len == 0 || key.len > SECRET_BYTES_MAX ||
        digest_of(cache, SECRET_KEY, (struct span){0}, key, digest) != ERR_OK) {
        return NULL;
    }
    const struct cache_entry *entry = cache_find(cache, digest);
    return entry != NULL ? entry->client : NULL;
}

/* A queued check nobody waits for any more is dropped: a peer that connects, sends a password and
 * goes must not leave work behind. One that runs finishes and feeds the cache. */
static void check_abandon(struct policy_check *check)
{
    if (check->waiters != NULL || check->runs || check->cache == NULL) {
        return;
    }
    struct policy_check **link = &check->cache->checks;
    while (*link != check) {
        link = &(*link)->next;
    }
    *link = check->next;
    check_free(check);
}

void policy_auth_cancel(struct policy_auth **auth)
{
    struct policy_auth *a = *auth;
    *auth = NULL;
    if (a == NULL) {
        return;
    }
    struct policy_check *check = a->check;
    if (check != NULL) {
        struct policy_auth **link = &check->waiters;
        while (*link != a) {
            link = &(*link)->next;
        }
        *link = a->next;
        check_abandon(check);
    }
    auth_free(a);
}

/* ---- Making hashes ---- */

int policy_hash(struct span secret, char *out, size_t out_bytes)
{
    char setting[CRYPT_GENSALT_OUTPUT_SIZE];
    struct crypt_data *data = mem_zero(sizeof *data);
    char *text = mem_dup(secret);
    int rc = ERR_IO;
    bool has_nul = secret.len > 0 && memchr(secret.data, '\0', secret.len) != NULL;
    if (!has_nul && crypt_gensalt_rn("$y$", 0, NULL, 0, setting, sizeof setting) != NULL) {
        const char *made = crypt_r(text, setting, data);
        if (made != NULL && made[0] != '*' && strlen(made) < out_bytes) {
            memcpy(out, made, strlen(made) + 1);
            rc = ERR_OK;
        }
    }
    mem_wipe(text, secret.len);
    mem_free(text);
    mem_wipe(data, sizeof *data);
    mem_free(data);
    return rc;
}
