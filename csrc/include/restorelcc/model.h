/* The packed model on disk (docs/format.md, version 1), opened without Python. The C ABI (C99).
 *
 * A model is a directory that `restorelcc pack` wrote. It is mapped, not read: opening costs the checks and a
 * table of names, and pages of the file come in when a kernel first touches them. Everything handed out points
 * into the model and is valid until rlcc_model_close(); nothing of it may be written to.
 *
 * A model never changes after rlcc_model_open(): any number of threads may use it at once, without locks. The file
 * must not be changed in place meanwhile, nor cut: the system ends a process that touches pages of a mapping that
 * the file no longer has (SIGBUS), in the checks too. Replacing it by a rename is safe, and so is removing it.
 *
 * The directory may come from anywhere: whatever its bytes, no function here reads outside of the files, and all
 * weights handed out have passed rlcc_packed_validate().
 */
#ifndef RESTORELCC_MODEL_H_
#define RESTORELCC_MODEL_H_

#include "restorelcc/restorelcc.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rlcc_model rlcc_model; /* opaque */

/* RLCC_INVALID_ARGUMENT, with the file and what is wrong, for a directory that is not such a model; *model is null
 * then. RLCC_OUT_OF_MEMORY. */
RLCC_API rlcc_status rlcc_model_open(const char* directory, rlcc_model** model);
RLCC_API void rlcc_model_close(rlcc_model* model); /* null is fine */

/* config.json. What a family of models does not have is 0, or null for strings. */
typedef struct rlcc_model_config {
  const char* model_type;   /* "llama" */
  const char* architecture; /* "LlamaForCausalLM" */
  int64_t hidden_size;      /* E */
  int64_t layers;           /* L */
  int64_t heads;            /* H, of queries */
  int64_t kv_heads;         /* of keys and values */
  int64_t head_dim;         /* D */
  int64_t intermediate_size;
  int64_t vocabulary; /* V */
  int64_t max_positions;
  double norm_eps;
  double rope_theta;
  const char* rope_type;  /* "default"; others have parameters that stand in `json` */
  const char* activation; /* "silu" */
  int32_t attention_bias;
  int32_t mlp_bias;
  int32_t tied_head; /* 1: the LM head is the embedding (a packed one is the weight "lm_head", and this is 0) */
  int64_t bos_token; /* -1: none */
  const int64_t* eos_tokens; /* of generation_config.json where that names any, else of config.json */
  int64_t eos_token_count;
  const char* values; /* the survivors' type: "bf16", "fp32", "fp16", "int8" */
  const char* json; /* the whole of config.json, UTF-8, ends with a 0 */
  int64_t json_bytes;
} rlcc_model_config;
RLCC_API rlcc_status rlcc_model_get_config(const rlcc_model* model, rlcc_model_config* config);

/* A dense tensor: embeddings, norms, biases, what stayed dense. */
typedef struct rlcc_tensor {
  const char* name; /* "model.embed_tokens.weight" */
  const void* data; /* contiguous, last dimension fastest; 16-byte aligned if a multiple of 16 bytes */
  rlcc_dtype dtype; /* -1: one that no kernel takes, such as int64; see type */
  int32_t dimensions;
  int64_t shape[4];
  const char* type; /* as the file names it: "BF16", "F32", "F16", "I64", ... */
  int64_t bytes;
} rlcc_tensor;

/* A prunable matrix. Joined matrices (q, k and v of a layer) stand in one weight: `weight` is all of it, and the
 * module's own rows are first_row .. first_row + rows. */
typedef struct rlcc_weight {
  const char* name;          /* of the module: "model.layers.0.self_attn.q_proj" */
  const char* joined;        /* of all in `weight`: "model.layers.0.self_attn.q_proj+k_proj+v_proj"; name if alone */
  rlcc_packed_weight weight; /* trusted */
  int64_t first_row;
  int64_t rows;
} rlcc_weight;

/* In the order of the file (tensors) and of restorelcc.json (weights). Index from 0. */
RLCC_API int64_t rlcc_model_tensor_count(const rlcc_model* model);
RLCC_API rlcc_status rlcc_model_tensor_at(const rlcc_model* model, int64_t index, rlcc_tensor* tensor);
RLCC_API int64_t rlcc_model_weight_count(const rlcc_model* model);
RLCC_API rlcc_status rlcc_model_weight_at(const rlcc_model* model, int64_t index, rlcc_weight* weight);

/* By name. RLCC_INVALID_ARGUMENT where there is none; rlcc_model_has() asks without that. A packed LM head is the
 * weight "lm_head"; a tied, dense one is the tensor of the embeddings alone. */
RLCC_API rlcc_status rlcc_model_tensor(const rlcc_model* model, const char* name, rlcc_tensor* tensor);
RLCC_API rlcc_status rlcc_model_weight(const rlcc_model* model, const char* name, rlcc_weight* weight);
RLCC_API int32_t rlcc_model_has(const rlcc_model* model, const char* name); /* 1: tensor, 2: weight, 0: neither */

/* Compensations that are not folded into biases, by name. */
typedef struct rlcc_compensation {
  const char* name;
  const float* heads;   /* c [L, H * D], into each output projection; null: has none */
  int64_t heads_columns;
  const float* ffn;     /* c [L, E], added to each FFN's output; null: has none */
  int64_t ffn_columns;
  int64_t layers;
} rlcc_compensation;
RLCC_API int64_t rlcc_model_compensation_count(const rlcc_model* model);
RLCC_API rlcc_status rlcc_model_compensation_at(const rlcc_model* model, int64_t index,
                                                rlcc_compensation* compensation);
/* Of the one that applies when none is chosen; -1: none does. */
RLCC_API int64_t rlcc_model_default_compensation(const rlcc_model* model);

#ifdef __cplusplus
}
#endif
#endif /* RESTORELCC_MODEL_H_ */
