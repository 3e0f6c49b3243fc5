// checks of what a model file decides

#include "llama-interp-impl.h"

#include "llama-model.h"

#include <bitset>
#include <cstring>
#include <numeric>
#include <stdexcept>

//
// model
//

static std::string piece_of(const llama_vocab * vocab, llama_token token) {
    std::string res(64, '\0');
    int32_t n = llama_token_to_piece(vocab, token, &res[0], res.size(), 0, true);
    if (n < 0) {
        res.resize(-n);
        n = llama_token_to_piece(vocab, token, &res[0], res.size(), 0, true);
    }
    res.resize(std::max(n, 0));
    return res;
}

void llama_interp_check_model(const llama_model & model) {
    const auto * vocab = llama_model_get_vocab(&model);
    if (llama_vocab_type(vocab) != LLAMA_VOCAB_TYPE_RWKV) {
        return;
    }

    // this tokenizer takes the longest token that fits: where none does although one begins so, it never ends
    std::bitset<256> begins;
    std::bitset<256> single;
    for (llama_token token = 0; token < llama_vocab_n_tokens(vocab); ++token) {
        const auto piece = piece_of(vocab, token);
        if (!piece.empty()) {
            begins.set((uint8_t) piece[0]);
        }
        if (piece.size() == 1) {
            single.set((uint8_t) piece[0]);
        }
    }
    if ((begins & ~single).any()) {
        throw std::runtime_error("the vocabulary of the rwkv tokenizer lacks single bytes that its tokens begin with");
    }
}

//
// graph
//

static void refuse(const ggml_tensor * node, const std::string & what) {
    throw std::runtime_error(std::string("the model file is damaged, convert or download it again: ") + node->name + " " + what);
}

static void refuse_type(const ggml_tensor * weight) {
    refuse(weight, std::string("has type ") + ggml_type_name(weight->type) + ", with which it cannot be used");
}

// a matrix may have a type that no kernel multiplies or reads, and none looks; rows of whole numbers can be read
static void check_matrix(const ggml_tensor * node) {
    const ggml_tensor * weight = node->src[0];
    const ggml_type     type   = weight->type;

    const bool as_it_is = type == GGML_TYPE_F32 || (type == GGML_TYPE_I32 && node->op == GGML_OP_GET_ROWS);
    if (!as_it_is && !ggml_get_type_traits(type)->to_float) {
        refuse_type(weight);
    }
}

// a norm or a bias: on the CPU its type is that of what it is multiplied with or added to
static void check_elementwise(const ggml_tensor * node) {
    const ggml_tensor * weight = node->src[1];
    const ggml_type     type   = weight->type;
    const bool          host   = weight->buffer && ggml_backend_buffer_is_host(weight->buffer);

    const bool is_float = type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
    if (!is_float || (host && type != GGML_TYPE_F32 && type != node->src[0]->type)) {
        refuse_type(weight);
    }
}

static void check_eps(const ggml_tensor * node, int32_t i_param) {
    float eps;
    memcpy(&eps, node->op_params + i_param, sizeof(eps));
    if (!(eps >= 0.0f)) {
        refuse(node, "is a norm with an epsilon of " + std::to_string(eps));
    }
}

// with no dimension to rotate the kernel never ends
static void check_rope(const ggml_tensor * node) {
    const int32_t n_dims = node->op_params[1];
    const int32_t mode   = node->op_params[2];
    const int32_t n_offs = node->op_params[15];

    if (n_dims <= 0 || n_dims % 2 != 0 || n_offs < 0 || n_offs % 2 != 0 || (int64_t) n_offs + n_dims > node->ne[0]) {
        refuse(node, "rotates " + std::to_string(n_dims) + " of " + std::to_string(node->ne[0]) + " dimensions");
    }
    if (mode & GGML_ROPE_TYPE_MROPE) {
        const int32_t * sections = node->op_params + 11;
        const bool      negative = std::any_of(sections, sections + 4, [](int32_t n) { return n < 0; });
        const bool      some     = std::any_of(sections, sections + 3, [](int32_t n) { return n > 0; });
        if (negative || !some || std::accumulate(sections, sections + 4, (int64_t) 0) > node->ne[0]) {
            refuse(node, "rotates sections that do not fit its " + std::to_string(node->ne[0]) + " dimensions");
        }
    }
}

void llama_interp_check_graph(const ggml_cgraph * gf) {
    const int n_nodes = ggml_graph_n_nodes(const_cast<ggml_cgraph *>(gf));
    for (int i = 0; i < n_nodes; ++i) {
        const ggml_tensor * node = ggml_graph_node(const_cast<ggml_cgraph *>(gf), i);
        switch (node->op) {
            case GGML_OP_MUL_MAT:
            case GGML_OP_MUL_MAT_ID:
            case GGML_OP_GET_ROWS:
                check_matrix(node);
                break;
            case GGML_OP_ADD:
            case GGML_OP_ADD_ID:
            case GGML_OP_SUB:
            case GGML_OP_MUL:
            case GGML_OP_DIV:
                check_elementwise(node);
                break;
            case GGML_OP_NORM:
            case GGML_OP_RMS_NORM:
            case GGML_OP_L2_NORM:
                check_eps(node, 0);
                break;
            case GGML_OP_ROPE:
                check_rope(node);
                break;
            default:
                break;
        }
    }
}
