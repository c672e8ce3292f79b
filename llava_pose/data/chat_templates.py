"""The chat templates that a base is given, by name."""

# Content is a string, or a list of {"type": "text" | "image"} parts as transformers' multimodal chats have it.
_CONTENT = (
    "{%- macro show(content) -%}{%- if content is string -%}{{ content }}{%- else -%}"
    "{%- for part in content -%}{%- if part.type == 'image' -%}{{ '<image>\n' }}"
    "{%- else -%}{{ part.text }}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)
CHAT_TEMPLATES = {
    "chatml": _CONTENT
    + "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\n' }}{{ show(message.content) }}"
    "{{ '<|im_end|>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}",
    "vicuna": _CONTENT + "{{ bos_token }}{%- for message in messages -%}{%- if message.role == 'assistant' -%}"
    "{{ 'ASSISTANT: ' }}{{ show(message.content) }}{{ eos_token }}"
    "{%- elif message.role == 'user' -%}{{ 'USER: ' }}{{ show(message.content) }}{{ ' ' }}"
    "{%- else -%}{{ show(message.content) }}{{ ' ' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}",
}
