#include "queue/body.h"

#include "gateway/base/codec.h"
#include "gateway/base/seal.h"
#include "queue/message.h"

#include <stdio.h>
#include <zstd.h>

enum {
    KIND_RAW = 0x01,
    KIND_ZSTD = 0x02,
    KIND_SEALED = 0x04,
    KIND_SEALED_ZSTD = 0x08,
    MAGIC = 0xf8, /* stands in no header and in no UTF-8 */
    HEAD_BYTES = 8,
    SIZE_AT = 4,
    SEALED_HEAD_MAX = HEAD_BYTES + 1 + KEYRING_ID_MAX,
    COMPRESS_FROM = 1024,
    KEEP_PART = 16, /* compressed only when it saves at least a sixteenth */
    LEVEL = 1,      /* half the size of real mail at 9 us for 3 KiB; 3 saves 1 % more for 40 % more
                       time, -1 saves a quarter less */
    REST_BYTES = 128 * 1024,
};
#define FRAME_MAX \
    (BODY_PIECE_BYTES + SEALED_HEAD_MAX + SEAL_NONCE_BYTES + SEAL_TAG_BYTES + (size_t)1)

struct body_codec {
    bool compress;
    const struct keyring *keys;
    ZSTD_CCtx *compressor; /* made at the first use, as what follows */
    ZSTD_DCtx *decompressor;
    struct seal *seal;
    struct buf frame;    /* what body_encode() lends */
    struct buf gathered; /* first and second in one */
    struct buf opened;   /* a zstd frame that was sealed */
};

struct body_codec *body_codec_new(bool compress, const struct keyring *keys)
{
    struct body_codec *codec = mem_zero(sizeof(*codec));
    codec->compress = compress;
    codec->keys = keys;
    buf_init(&codec->frame, FRAME_MAX);
    buf_init(&codec->gathered, BODY_PIECE_BYTES);
    buf_init_secret(&codec->opened, BODY_PIECE_BYTES);
    return codec;
}

void body_codec_free(struct body_codec **codec)
{
    if (*codec != NULL) {
        (void)ZSTD_freeCCtx((*codec)->compressor); /* accepts NULL, cannot fail */
        (void)ZSTD_freeDCtx((*codec)->decompressor);
        seal_free(&(*codec)->seal);
        buf_release(&(*codec)->frame);
        buf_release(&(*codec)->gathered);
        buf_release(&(*codec)->opened);
        mem_free(*codec);
        *codec = NULL;
    }
}

void body_codec_rest(struct body_codec *codec)
{
    struct buf *rooms[] = {&codec->frame, &codec->gathered, &codec->opened};
    for (size_t i = 0; i < sizeof(rooms) / sizeof(rooms[0]); i++) {
        if (rooms[i]->cap > REST_BYTES) {
            buf_release(rooms[i]);
        }
    }
}

size_t body_piece_count(size_t body_bytes)
{
    return (body_bytes + BODY_PIECE_BYTES - 1) / BODY_PIECE_BYTES;
}

size_t body_piece_bytes(const struct body_piece *piece)
{
    size_t before = piece->index * BODY_PIECE_BYTES;
    size_t left = piece->body_bytes > before ? piece->body_bytes - before : 0;
    return left < BODY_PIECE_BYTES ? left : BODY_PIECE_BYTES;
}

static struct seal *seal_of(struct body_codec *codec)
{
    if (codec->seal == NULL) {
        codec->seal = seal_new();
    }
    return codec->seal;
}

/* What the tag vouches for beside the bytes: the frame's head with the key's name, the message's
 * id.
 */
struct aad {
    char bytes[SEALED_HEAD_MAX + MESSAGE_ID_MAX];
    size_t len;
};

static struct aad aad_of(const struct body_piece *piece, struct span head)
{
    struct aad aad = {0};
    memcpy(aad.bytes, head.data, head.len);
    memcpy(aad.bytes + head.len, piece->id.data, piece->id.len);
    aad.len = head.len + piece->id.len;
    return aad;
}

static void message_key(const unsigned char *key, struct span id, unsigned char out[SEAL_KEY_BYTES])
{
    static const char purpose[] = "heave stored body 1";
    char context[sizeof(purpose) + MESSAGE_ID_MAX];
    memcpy(context, purpose, sizeof(purpose)); /* with its NUL, which no id holds */
    memcpy(context + sizeof(purpose), id.data, id.len);
    seal_derive(key, span_make(context, sizeof(purpose) + id.len), out);
}

/* ---- Making frames ---- */

static int gather(struct body_codec *codec, struct span first, struct span second, struct span *out)
{
    if (first.len == 0 || second.len == 0) {
        *out = first.len == 0 ? second : first;
        return 0;
    }
    char *room = NULL;
    buf_reset(&codec->gathered);
    int status = buf_reserve(&codec->gathered, first.len + second.len, &room);
    if (status != 0) {
        return status;
    }
    memcpy(room, first.data, first.len);
    memcpy(room + first.len, second.data, second.len);
    *out = span_make(room, first.len + second.len);
    return 0;
}

/* How many bytes the compressed form has in `room`; 0: it is not worth it. */
static size_t squeeze(struct body_codec *codec, size_t body_bytes, struct span plain, char *room)
{
    if (!codec->compress || body_bytes < COMPRESS_FROM) {
        return 0;
    }
    if (codec->compressor == NULL) {
        codec->compressor = ZSTD_createCCtx();
        if (codec->compressor == NULL) {
            return 0;
        }
        /* Neither can fail for these values. */
        (void)ZSTD_CCtx_setParameter(codec->compressor, ZSTD_c_compressionLevel, LEVEL);
        (void)ZSTD_CCtx_setParameter(codec->compressor, ZSTD_c_checksumFlag, 1);
    }
    size_t made = ZSTD_compress2(codec->compressor, room, plain.len - plain.len / KEEP_PART,
                                 plain.data, plain.len);
    return ZSTD_isError(made) != 0 ? 0 : made;
}

static void write_head(char *frame, unsigned char kind, const struct body_piece *piece)
{
    frame[0] = (char)kind;
    frame[1] = (char)MAGIC;
    frame[2] = (char)(piece->index >> 8);
    frame[3] = (char)piece->index;
    for (size_t i = 0; i < 4; i++) {
        frame[SIZE_AT + i] = (char)(piece->body_bytes >> (24 - 8 * i));
    }
}

/* The payload stands in the frame behind head and nonce; it is sealed where it is. */
static int close_frame(struct body_codec *codec, const struct body_piece *piece, char *frame,
                       size_t head_len, const unsigned char *key, size_t payload_len)
{
    unsigned char own[SEAL_KEY_BYTES];
    struct aad aad = aad_of(piece, span_make(frame, head_len));
    char *nonce = frame + head_len;
    char *payload = nonce + SEAL_NONCE_BYTES;
    codec_random(nonce, SEAL_NONCE_BYTES);
    message_key(key, piece->id, own);
    int status = seal_close(seal_of(codec), own, (unsigned char *)nonce,
                            span_make(aad.bytes, aad.len), span_make(payload, payload_len), payload,
                            (unsigned char *)payload + payload_len);
    mem_wipe(own, sizeof(own));
    return status;
}

int body_encode(struct body_codec *codec, const struct body_piece *piece, struct span first,
                struct span second, struct span *out)
{
    struct span plain = {0};
    struct span key_id = {0};
    char *frame = NULL;
    if (piece->body_bytes > BODY_MAX_BYTES || piece->id.len > MESSAGE_ID_MAX) {
        return ERR_LIMIT;
    }
    ASSERT(first.len + second.len == body_piece_bytes(piece));
    int status = gather(codec, first, second, &plain);
    buf_reset(&codec->frame);
    status = status != 0
                 ? status
                 : buf_reserve(&codec->frame, FRAME_MAX - BODY_PIECE_BYTES + plain.len, &frame);
    if (status != 0) {
        return status;
    }
    const unsigned char *key = codec->keys != NULL ? keyring_first(codec->keys, &key_id) : NULL;
    size_t head_len = HEAD_BYTES + (key != NULL ? 1 + key_id.len : 0);
    char *payload = frame + head_len + (key != NULL ? SEAL_NONCE_BYTES : 0);
    size_t payload_len = squeeze(codec, piece->body_bytes, plain, payload);
    bool squeezed = payload_len > 0;
    if (!squeezed) {
        payload_len = plain.len;
        if (plain.len > 0) {
            memcpy(payload, plain.data, plain.len);
        }
    }
    size_t len = (size_t)(payload - frame) + payload_len;
    if (key == NULL) {
        write_head(frame, squeezed ? KIND_ZSTD : KIND_RAW, piece);
    } else {
        write_head(frame, squeezed ? KIND_SEALED_ZSTD : KIND_SEALED, piece);
        frame[HEAD_BYTES] = (char)key_id.len;
        memcpy(frame + HEAD_BYTES + 1, key_id.data, key_id.len);
        status = close_frame(codec, piece, frame, head_len, key, payload_len);
        len += SEAL_TAG_BYTES;
    }
    if (status == 0) {
        buf_commit(&codec->frame, len);
        *out = buf_span(&codec->frame);
    }
    return status;
}

/* ---- Taking them apart ---- */

bool body_is_bare(struct span stored)
{
    /* A message begins with the name of a header field, whose second byte is no MAGIC. */
    const unsigned char *bytes = (const unsigned char *)stored.data;
    return stored.len > 0 && bytes[0] > 0x20 && bytes[0] < 0x7f &&
           (stored.len == 1 || bytes[1] < 0x7f);
}

static bool is_sealed(struct span stored)
{
    return stored.data[0] == KIND_SEALED || stored.data[0] == KIND_SEALED_ZSTD;
}

int body_size(struct span stored, size_t *out_bytes)
{
    if (body_is_bare(stored)) {
        *out_bytes = stored.len;
        return stored.len <= BODY_MAX_BYTES ? 0 : ERR_INVAL;
    }
    if (stored.len < HEAD_BYTES || (unsigned char)stored.data[1] != MAGIC) {
        return ERR_INVAL;
    }
    switch (stored.data[0]) {
    case KIND_RAW:
    case KIND_ZSTD:
    case KIND_SEALED:
    case KIND_SEALED_ZSTD:
        break;
    default: /* a byte from outside, not an enum */
        return ERR_INVAL;
    }
    size_t bytes = 0;
    for (size_t i = 0; i < 4; i++) {
        bytes = bytes << 8 | (unsigned char)stored.data[SIZE_AT + i];
    }
    if (bytes > BODY_MAX_BYTES) {
        return ERR_INVAL;
    }
    *out_bytes = bytes;
    return 0;
}

/* The number of the piece that a frame is. */
static uint32_t index_of(struct span stored)
{
    return (uint32_t)(unsigned char)stored.data[2] << 8 | (unsigned char)stored.data[3];
}

/* The name of the key; empty when the frame is not sealed or too short to say. */
static struct span key_id_of(struct span stored)
{
    if (stored.len <= HEAD_BYTES || !is_sealed(stored)) {
        return (struct span){0};
    }
    size_t len = (unsigned char)stored.data[HEAD_BYTES];
    bool fits = len <= KEYRING_ID_MAX && HEAD_BYTES + 1 + len <= stored.len;
    return fits ? span_make(stored.data + HEAD_BYTES + 1, len) : (struct span){0};
}

static int unsqueeze(struct body_codec *codec, struct span zstd, char *out, size_t out_len)
{
    if (codec->decompressor == NULL) {
        codec->decompressor = ZSTD_createDCtx();
        if (codec->decompressor == NULL) {
            return ERR_NOMEM;
        }
    }
    /* Never writes beyond `out_len`, whatever the frame declares. */
    size_t made = ZSTD_decompressDCtx(codec->decompressor, out, out_len, zstd.data, zstd.len);
    return made == out_len ? 0 : ERR_INVAL;
}

/* Opens the payload of a sealed frame into `room`, which has its size. */
static int open_frame(struct body_codec *codec, const struct body_piece *piece, struct span head,
                      const unsigned char *key, struct span payload, char *room)
{
    unsigned char own[SEAL_KEY_BYTES];
    struct aad aad = aad_of(piece, head);
    const char *nonce = head.data + head.len;
    message_key(key, piece->id, own);
    int status = seal_open(seal_of(codec), own, (const unsigned char *)nonce,
                           span_make(aad.bytes, aad.len), payload,
                           (const unsigned char *)payload.data + payload.len, room);
    mem_wipe(own, sizeof(own));
    return status;
}

static int decode_sealed(struct body_codec *codec, const struct body_piece *piece,
                         struct span stored, char *out, size_t out_len)
{
    struct span key_id = key_id_of(stored);
    size_t head_len = HEAD_BYTES + 1 + key_id.len;
    size_t around = head_len + SEAL_NONCE_BYTES + SEAL_TAG_BYTES;
    if (key_id.len == 0 || stored.len < around || stored.len - around > out_len) {
        return ERR_INVAL;
    }
    const unsigned char *key = codec->keys != NULL ? keyring_find(codec->keys, key_id) : NULL;
    if (key == NULL) {
        return ERR_NOTFOUND;
    }
    struct span head = span_make(stored.data, head_len);
    struct span payload = span_make(stored.data + head_len + SEAL_NONCE_BYTES, stored.len - around);
    if (stored.data[0] == KIND_SEALED) {
        return payload.len == out_len ? open_frame(codec, piece, head, key, payload, out)
                                      : ERR_INVAL;
    }
    char *room = NULL;
    buf_reset(&codec->opened);
    int status = buf_reserve(&codec->opened, payload.len, &room);
    status = status != 0 ? status : open_frame(codec, piece, head, key, payload, room);
    return status != 0 ? status : unsqueeze(codec, span_make(room, payload.len), out, out_len);
}

int body_decode(struct body_codec *codec, const struct body_piece *piece, struct span stored,
                char *out)
{
    size_t bytes = 0;
    if (body_size(stored, &bytes) != 0 || bytes != piece->body_bytes ||
        piece->id.len > MESSAGE_ID_MAX) {
        return ERR_INVAL;
    }
    bool bare = body_is_bare(stored);
    if ((bare ? 0 : index_of(stored)) != piece->index) {
        return ERR_INVAL;
    }
    struct span payload = bare ? stored
                               : span_make(stored.data + HEAD_BYTES, stored.len - HEAD_BYTES);
    size_t out_len = bare ? stored.len : body_piece_bytes(piece);
    if (!bare && is_sealed(stored)) {
        return decode_sealed(codec, piece, stored, out, out_len);
    }
    if (!bare && stored.data[0] == KIND_ZSTD) {
        return unsqueeze(codec, payload, out, out_len);
    }
    if (payload.len != out_len) {
        return ERR_INVAL;
    }
    if (out_len > 0) {
        memcpy(out, payload.data, out_len);
    }
    return 0;
}

void body_explain(int status, struct span stored, char *out, size_t out_bytes)
{
    struct span id = key_id_of(stored);
    if (status == ERR_NOTFOUND) {
        (void)snprintf(out, out_bytes,
                       "The body is sealed with the key \"%.*s\", which is not in "
                       "queue.encryption_key_file; add it and release the batch.",
                       SPAN_FMT(id));
    } else if (status == ERR_DENIED) {
        (void)snprintf(out, out_bytes,
                       "The key \"%.*s\" does not open the body: it is another key of that name, "
                       "or the body is damaged.",
                       SPAN_FMT(id));
    } else if (status == ERR_NOMEM) {
        (void)snprintf(out, out_bytes, "There was no memory for the body.");
    } else {
        (void)snprintf(out, out_bytes, "The stored body is damaged.");
    }
}
